//! Stacks made by hand, and whose functions are the program's own.

use super::*;
use crate::{
    detect::fixtures::name_stacks,
    model::{report::fixtures, stack::Module},
};

#[test]
fn a_closure_is_part_of_the_function_that_it_is_written_in() {
    let of = |files: &[(&str, &str)]| {
        let stack: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        let mut run = fixtures::run(&[(&stack.join(";"), 1)]);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        for (name, file) in files {
            for frame in names.frames.iter_mut().filter(|frame| frame.functions[0].name == *name) {
                let mut functions = frame.functions.to_vec();
                functions[0].file = Some((*file).into());
                frame.functions = functions;
            }
        }
        own(run.names(), &run.cpu.stacks[0].frames).map(|of| of.name.clone())
    };
    let (own_file, std) = ("/srv/app/src/main.rs", "/rustc/1234/library/core/src/iter/mod.rs");
    let axum = "/root/.cargo/registry/src/index/axum-0.8/src/lib.rs";
    let outside = [("main", own_file), ("serve", axum)];
    let sums = [&outside[..], &[("score", own_file), ("fold", std), ("{closure#0}", own_file)]].concat();
    assert_eq!(of(&sums).as_deref(), Some("score"));
    let handles = [&outside[..], &[("poll", std), ("{async_block#0}", own_file), ("sleep", std)]].concat();
    assert_eq!(of(&handles).as_deref(), Some("{async_block#0}"), "the framework is between it and main");
    let foreign = [&outside[..], &[("handle", own_file), ("{closure#1}", axum)]].concat();
    assert_eq!(of(&foreign).as_deref(), Some("handle"), "a closure of the framework's");
}

#[test]
fn a_typical_stack_is_where_most_of_the_work_is_done() {
    let run =
        fixtures::run(&[("main;f;write", 5), ("main;f;sort;a", 3), ("main;f;sort;b", 4), ("main;g", 2)]);
    let of = by_function(run.names(), run.cpu.stacks.iter(), |of| {
        path(run.names(), &of.frames).into_iter().find(|function| function.name == "f")
    });
    let (function, weight, stack) = of.most.unwrap();
    assert_eq!((function.name.as_str(), weight, of.known, of.all), ("f", 12, 12, 14));
    let names: Vec<&str> = path(run.names(), &stack.frames).iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names, ["main", "f", "sort", "b"], "and not the single heaviest");
}

#[test]
fn the_programs_own_function_is_found_below_its_libraries() {
    let of = |stack: &str| {
        let run = fixtures::run(&[(stack, 1)]);
        own(run.names(), &run.cpu.stacks[0].frames).map(|function| function.name.clone())
    };
    assert_eq!(
        of("main;app::handle;std::thread::sleep;__nanosleep;k:schedule").as_deref(),
        Some("app::handle")
    );
    assert_eq!(of("main;commit;__fdatasync").as_deref(), Some("commit"));
    assert_eq!(of("__clone;std::run"), None);
}

#[test]
fn an_interpreted_function_comes_before_its_interpreter() {
    let mut run = fixtures::run(&[("main;uv_run;load;node::fs::Read;read", 1)]);
    let names = std::rc::Rc::make_mut(&mut run.cpu.names);
    names.modules.push(Module::special(ModuleKind::Jit(7)));
    let load = names.frames.iter_mut().find(|frame| frame.functions[0].name == "load");
    if let Some(load) = load {
        load.module = 2;
    }
    let frames = &run.cpu.stacks[0].frames;
    assert_eq!(own(run.names(), frames).map(|function| function.name.as_str()), Some("load"));
}

#[test]
fn a_function_of_the_program_comes_before_those_of_javas_library() {
    let stack = "Pool.main;Pool.reserve;java.util.Map.get;(_complete_monitor_locking_Java);__futex_wait";
    let mut run = fixtures::run(&[(stack, 1)]);
    let names = std::rc::Rc::make_mut(&mut run.cpu.names);
    names.modules.push(Module::special(ModuleKind::Managed(Language::Java)));
    for frame in names.frames.iter_mut().filter(|frame| !frame.functions[0].name.starts_with("__")) {
        frame.module = 2;
    }
    let frames = &run.cpu.stacks[0].frames;
    assert_eq!(own(run.names(), frames).map(|function| function.name.as_str()), Some("Pool.reserve"));
}

#[test]
fn who_matches_a_regular_expression_comes_before_the_builtin_and_its_code() {
    let stack =
        "node::Start;check;test (builtin);v8::internal::RegExpImpl::IrregexpExec;[regular expression]";
    let mut run = fixtures::run(&[(stack, 1)]);
    let names = std::rc::Rc::make_mut(&mut run.cpu.names);
    names.modules.push(Module::special(ModuleKind::Managed(Language::JavaScript)));
    names.modules.push(Module::special(ModuleKind::Jit(7)));
    for frame in &mut names.frames {
        match &*frame.functions[0].name {
            "check" | "test (builtin)" => frame.module = 2,
            REGULAR_EXPRESSION => frame.module = 3,
            _ => {}
        }
    }
    let frames = &run.cpu.stacks[0].frames;
    assert_eq!(own(run.names(), frames).map(|function| function.name.as_str()), Some("check"));
}

#[test]
fn a_function_is_the_same_in_whatever_form_it_runs() {
    // Interpreted first, compiled later: other functions of the runtime are around it.
    let stacks = [
        "node::Start;Builtins_JSEntry;Builtins_InterpreterEntryTrampoline;handle;keys (builtin);Builtins_CEntry;calloc",
        "node::Start;Builtins_JSEntry;handle;calloc",
        "node::Start;Builtins_JSEntry;other;calloc",
        "main;handle;calloc",
    ];
    let mut run = fixtures::run(&[]);
    name_stacks(&mut run, &stacks);
    let names = std::rc::Rc::make_mut(&mut run.cpu.names);
    names.modules.push(Module::special(ModuleKind::Managed(Language::JavaScript)));
    let module = names.modules.len() - 1;
    for stack in 0..3 {
        for frame in names.stacks[&StackId(stack)].iter().copied() {
            if matches!(&*names.frames[frame].functions[0].name, "handle" | "keys (builtin)" | "other") {
                names.frames[frame].module = module;
            }
        }
    }
    let of = |stack: u32| functions(run.names(), Some(StackId(stack)));
    assert_eq!([of(0), of(1), of(2)], [["handle"], ["handle"], ["other"]]);
    assert_eq!(functions(run.names(), None), [""; 0]);
}

#[test]
fn the_library_of_go_is_not_the_programs_own_wherever_it_is() {
    let of = |name: &str, file: &str| {
        is_of_go(&Function { name: name.into(), file: Some(file.into()), ..Function::default() })
    };
    assert!(of("encoding/json.(*encodeState).string", "/opt/go/src/encoding/json/encode.go"));
    assert!(of("encoding/json.structEncoder.encode-fm", "./<autogenerated>"));
    assert!(!of("main.handle", "/home/me/src/main/main.go") && !of("main.T.f-fm", "<autogenerated>"));
    assert!(!of("shop/cart.Add", "/home/me/shop/cart/add.go"));
    assert!(!of("github.com/me/shop/cart.Add", "/root/go/src/github.com/me/shop/cart/add.go"));
}

#[test]
fn templates_of_the_standard_library_are_not_the_programs_own() {
    let run = fixtures::run(&[(
        "main;total;bool std::__detail::__regex_algo_impl<char*, true>(char*);std::sort<int*>(int*)",
        1,
    )]);
    let frames = run.cpu.stacks[0].frames.clone();
    assert_eq!(own(run.names(), &frames).map(|function| function.name.as_str()), Some("total"));
}

/// What a package does is done for the function that called it, but not for the one that only began everything.
#[test]
fn a_function_of_the_program_comes_before_those_of_packages() {
    let of = |stack: &str| {
        let mut run = fixtures::run(&[(stack, 1)]);
        let names = std::rc::Rc::make_mut(&mut run.cpu.names);
        names.modules.push(Module::special(ModuleKind::Managed(Language::Python)));
        for frame in names.frames.iter_mut().filter(|frame| frame.functions[0].name != "PyEval") {
            frame.module = 2;
            let name = frame.functions[0].name.clone();
            let folder = match name.split_once('.') {
                Some(("django", _)) => "/usr/lib/python3/dist-packages/django",
                Some(("threading", _)) => "/usr/lib/python3.11",
                _ => "/srv/shop",
            };
            frame.functions[0].file = Some(format!("{folder}/x.py"));
        }
        own(run.names(), &run.cpu.stacks[0].frames).map(|function| function.name.clone()).unwrap_or_default()
    };
    assert_eq!(of("PyEval;threading.run;django.get_response;orders;django.fetch;PyEval"), "orders");
    assert_eq!(of("PyEval;<module>;main;django.serve;django.get_response;PyEval"), "django.get_response");
    assert_eq!(of("PyEval;<module>;main;django.serve;orders;total;PyEval"), "total");
    assert_eq!(of("PyEval;<module>;main;compute;PyEval"), "compute");
}

#[test]
fn an_allocators_wrapper_is_not_the_place_that_allocates() {
    let place = |stack: &str| {
        let run = fixtures::run(&[(stack, 1)]);
        let frames = run.cpu.stacks[0].frames.clone();
        allocates(run.names(), &frames).map(|function| function.name.clone()).unwrap_or_default()
    };
    assert_eq!(place("main;serve;keep;malloc"), "keep");
    assert_eq!(place("main;rb_str_plus;[libruby.so+0x1ec470];[libruby.so+0xd8460]"), "rb_str_plus");
    assert_eq!(place("main;keep;operator new(unsigned long)"), "keep");
    assert_eq!(place("xmalloc;my_alloc"), "my_alloc", "nothing better is known");
}

#[test]
fn places_are_short() {
    let of =
        |file: &str| at(&Function { name: "f".into(), file: Some(file.into()), line: Some(7), start: None });
    assert_eq!(of("/srv/app/src/orders.js"), "f (src/orders.js:7)");
    assert_eq!(of("app.js"), "f (app.js:7)");
    assert_eq!(of("./misc/../sysdeps/unix/sysv/linux/fdatasync.c"), "f");
}
