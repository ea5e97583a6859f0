//! Credit, and when the next window opens.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn windows_stand_for_all_the_time(
        gaps_ns in prop::collection::vec(0..60_000_000_000u64, 1..50),
        mean_ns in GAP_NS.0 as u64..GAP_NS.1 as u64,
    ) {
        let (mut carry, mut stand_for) = (0.0, 0.0);
        for &gap_ns in &gaps_ns {
            let window = Window::next(gap_ns, mean_ns, &mut carry);
            let length_ns = window.length_ns;
            prop_assert!((WINDOW_NS / 2..=2 * WINDOW_NS).contains(&length_ns), "{length_ns}");
            let free_weight = mean_ns as f64 / length_ns as f64 + 1.0;
            prop_assert!((free_weight / f64::from(window.free_weight) - 1.0).abs() < 1e-3);
            prop_assert!(window.weight > 1);
            stand_for += f64::from(window.weight) - (gap_ns + length_ns) as f64 / length_ns as f64;
        }
        prop_assert!((stand_for + carry).abs() < 1e-3);
    }
}

#[test]
fn credit_is_a_share_of_the_time_and_bounded() {
    let mut credit = Credit::new(0.05);
    let start = credit.ns;
    credit.account(1_000_000_000, 50_000_000.0);
    assert!((credit.ns - start).abs() < 1.0, "what is earned may be spent");
    credit.account(0, 1e9);
    assert!(credit.ns < 0.0);
    credit.account(u64::MAX / 2, 0.0);
    assert!(credit.ns <= CREDIT_NS.1);
}

#[test]
fn windows_are_as_far_apart_as_it_takes_to_earn_them() {
    let mut credit = Credit { share: 0.05, ns: 0.0 };
    assert!((credit.gap_ns(10e6, 1.0) - 200e6).abs() < 1.0, "10 ms at 5 % of one CPU");
    assert!((credit.gap_ns(10e6, 2.0) - 100e6).abs() < 1.0, "of two");
    credit.ns = -10e6;
    assert!((credit.gap_ns(10e6, 1.0) - 400e6).abs() < 1.0, "what is owed is paid back");
    credit.ns = 50e6;
    assert!((credit.gap_ns(10e6, 1.0) - GAP_NS.0).abs() < 1.0);
    assert!((credit.gap_ns(10e6, 0.0) - GAP_NS.0).abs() < 1.0);
    credit.ns = -50e6;
    assert!((credit.gap_ns(10e6, 0.0) - GAP_NS.1).abs() < 1.0);
}

#[test]
fn usual_is_mostly_what_was_lately() {
    let mut usual = Usual::default();
    usual.add(10.0, 1.0);
    assert_eq!((usual.price_ns, usual.busy), (10.0, 1.0));
    (0..50).for_each(|_| usual.add(20.0, 0.5));
    assert!((usual.price_ns - 20.0).abs() < 0.1 && (usual.busy - 0.5).abs() < 0.01);
}
