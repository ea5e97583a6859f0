//! The page holds what was found, loads nothing, and obeys nobody's names.

use std::rc::Rc;

use fastrand::Rng;

use super::*;
use crate::{
    detect::{
        self,
        compare::{compare, fixtures::on_cpu},
        fixtures::{run_that_grows, run_with_findings},
        rule::Overrides,
    },
    model::{comparison::Baseline, report::fixtures},
    output::summary,
};

fn page(run: &Run) -> String {
    let mut html = Vec::new();
    write(run, &RenderOptions::default(), &mut html).unwrap();
    String::from_utf8(html).unwrap()
}

fn judged(mut run: Run) -> Run {
    detect::judge(&mut run, &Overrides::default());
    run
}

#[test]
fn verdict_findings_charts_and_flame_graph_are_in_the_page() {
    let run = judged(run_with_findings());
    let html = page(&run);
    assert!(html.contains("Event-loop delay") && html.contains("<circle"), "{html}");
    for finding in &run.findings {
        assert!(html.contains(finding.rule), "{}", finding.rule);
    }
    let grows = judged(run_that_grows());
    let html = page(&grows);
    assert!(html.contains("Memory held") && html.contains("what is expected"), "{html}");
    assert!(html.contains("reaches its limit, 1.07 GB (cgroup /system.slice/app.service)"), "{html}");
}

#[test]
fn peers_have_their_routes_and_failures() {
    let mut run = fixtures::run(&[("main", 1)]);
    let mut requests = crate::model::request::fixtures::requests();
    requests.peers[0].first = Default::default();
    run.requests = Some(requests);
    let html = page(&run);
    assert!(html.contains("GET /users/:id") && html.contains(">0.7 %<"), "{html}");
    assert!(
        html.contains("10.0.0.2:5432") && html.contains(">failed: 2 ECONNREFUSED (connecting)<"),
        "{html}"
    );
}

#[test]
fn names_are_text_and_never_markup() {
    const EVIL: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>";
    let mut run = run_with_findings();
    run.cpu.stacks = fixtures::profile(&[("main;evil", 90), ("main", 10)]).stacks;
    let names = Rc::make_mut(&mut run.cpu.names);
    for function in names.frames.iter_mut().flat_map(|frame| &mut frame.functions) {
        function.name = format!("{EVIL}{}", function.name);
        function.file = Some(EVIL.to_owned());
    }
    run.cpu.stacks.iter_mut().for_each(|stack| stack.process = EVIL.into());
    run.cpu.total = 100;
    run.cpu.meta.target = format!("pid 7 ({EVIL})");
    run.cpu.meta.host = EVIL.to_owned();
    for thread in run.blocking.iter_mut().flat_map(|blocking| &mut blocking.threads) {
        (thread.process, thread.name) = (EVIL.to_owned(), EVIL.to_owned());
    }
    for of in run.blocking.iter_mut().flat_map(|blocking| &mut blocking.loops) {
        (of.process, of.name) = (EVIL.to_owned(), EVIL.to_owned());
    }
    let run = judged(run);
    let html = page(&run);
    assert!(html.contains("&lt;script&gt;alert(1)"));
    // The page itself has no script at all, and no picture that is not drawn in it.
    for markup in ["<script", "<img", "onerror=alert(1)>\"", "javascript:"] {
        assert!(!html.contains(markup), "{markup}");
    }
    let flame = html.split_once("data:image/svg+xml;base64,").unwrap().1.split_once('"').unwrap().0;
    let svg = String::from_utf8(BASE64_STANDARD.decode(flame).unwrap()).unwrap();
    assert!(svg.contains("&lt;script&gt;alert(1)") && !svg.contains("<script>alert"), "{svg}");
    assert!(!svg.contains("<img"), "{svg}");
}

#[test]
fn nothing_is_loaded_from_anywhere() {
    let html = page(&judged(run_with_findings()));
    assert!(html.contains("default-src &#39;none&#39;") || html.contains("default-src 'none'"), "{html}");
    for link in ["<link", "@import", "url(", "src=\"http", "href=\"http", "src=\"//"] {
        assert!(!html.contains(link), "{link}");
    }
}

#[test]
fn an_empty_run_is_a_page_too() {
    let html = page(&judged(fixtures::run(&[])));
    assert!(html.contains("It hardly ran") && html.ends_with("</html>"), "{html}");
    assert!(!html.contains("Flame graphs"));
}

#[test]
fn pictures_say_how_high_they_are() {
    assert_eq!(height("<svg version=\"1.1\" width=\"1200\" height=\"342\">"), 350);
    assert_eq!((height("<svg>"), height("<svg height=\"1e9\">")), (608, 1408));
}

#[test]
fn what_differs_from_normal_is_on_the_first_page() {
    let random = &mut Rng::with_seed(1);
    let (before, after) = (on_cpu(&[0.5, 0.5], 30, random), on_cpu(&[0.7, 0.3], 30, random));
    let comparison = compare(before.measured(), after.measured());
    let mut run = judged(run_with_findings());
    run.baseline = Some(Baseline { file: "normal<b>.prec".into(), comparison });
    let html = page(&run);
    assert!(html.contains("Compared with normal&lt;b&gt;.prec"), "{html}");
    let style = Style { colour: false, width: Some(80), threads: false, top: 7 };
    let mut text = Vec::new();
    summary::write(&run, &style, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let line = text.split_once("compared with normal<b>.prec: ").unwrap().1;
    assert!(line.contains("points of CPU samples in f0") && line.contains("in f1"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}
