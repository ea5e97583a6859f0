//! One room per probe: what it asks of the kernel object, its maps, its records, and what it makes of them. [`PROBES`] is
//! the table; loading and `profiler doctor` go by it.

use anyhow::Result;

use crate::{kernel::load::Plan, model::kind::ProfileKind, settings::Settings};

#[cfg(test)]
pub(crate) mod fixtures;

pub mod alloc;
pub mod budget;
pub mod cpu;
pub mod ended;
pub mod fault;
pub mod record;
pub mod request;
pub mod sched;
pub mod spec;
pub mod syscall;
pub mod vitals;
pub mod wire;

use spec::ProbeSpec;

/// Every probe, in the order in which they start.
pub static PROBES: [&ProbeSpec; 7] =
    [&cpu::SPEC, &sched::SPEC, &syscall::SPEC, &request::SPEC, &vitals::SPEC, &alloc::SPEC, &fault::SPEC];

/// The probes that a run has.
pub fn enabled(settings: &Settings) -> impl Iterator<Item = &'static ProbeSpec> {
    PROBES.into_iter().filter(|spec| (spec.enabled)(settings))
}

/// Those of them whose kernel programs it has.
fn measuring(settings: &Settings) -> impl Iterator<Item = &'static ProbeSpec> {
    enabled(settings).filter(|spec| (spec.measures)(settings))
}

/// The kinds of profiles that a run measures.
pub fn kinds(settings: &Settings) -> Vec<ProfileKind> {
    measuring(settings).flat_map(|spec| spec.kinds).copied().collect()
}

/// What they ask of the kernel object. Maps of probes that do not measure need no memory.
pub fn plan(settings: &Settings) -> Result<Plan> {
    let mut plan = Plan::default();
    let used: Vec<&str> = measuring(settings).flat_map(|spec| spec.large_maps).copied().collect();
    let unused = PROBES.iter().flat_map(|spec| spec.large_maps).filter(|map| !used.contains(map));
    unused.for_each(|map| plan.map_size(map, 1));
    enabled(settings).try_for_each(|spec| (spec.prepare)(settings, &mut plan))?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        model::kind::KINDS,
        process::target::Target,
        settings::{Alloc, Requests, Syscalls, Waits, fixtures::settings},
    };

    #[test]
    fn each_probe_has_a_name_and_every_kind_of_profile_a_probe() {
        let mut names = BTreeSet::new();
        for spec in PROBES {
            assert!(names.insert(spec.name) && !spec.about.is_empty());
        }
        assert!(KINDS.iter().all(|kind| PROBES.iter().any(|spec| spec.kinds.contains(kind))));
    }

    #[test]
    fn a_run_has_the_probes_it_is_asked_for() {
        let mut settings = settings(Target::All);
        let names = |settings: &Settings| enabled(settings).map(|spec| spec.name).collect::<Vec<_>>();
        assert_eq!(names(&settings), ["cpu", "vitals", "alloc"]);
        assert_eq!(kinds(&settings), [crate::model::kind::CPU]);
        (settings.waits, settings.syscalls, settings.alloc.mode) = (Waits::On, Syscalls::On, Alloc::Full);
        settings.requests = Requests::On;
        assert_eq!(names(&settings), ["cpu", "sched", "syscall", "request", "vitals", "alloc"]);
        settings.unwind_by_tables = true;
        settings.target = Target::Comm("x".into());
        assert_eq!(names(&settings), PROBES.map(|spec| spec.name));
    }

    #[test]
    fn maps_of_probes_that_do_not_run_are_small() {
        let plan = plan(&settings(Target::All)).unwrap();
        for spec in PROBES {
            assert!(spec.large_maps.iter().all(|map| plan.size_of(map) == Some(1)), "{}", spec.name);
        }
    }
}
