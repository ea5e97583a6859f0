//! Many threads queue for one lock.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    detect::{
        rule::{Needs, Rule, Values},
        words::{Namer, evidence, functions},
    },
    model::{
        finding::{Bottleneck, Cost, Finding, ProcessName},
        report::Run,
    },
};

/// The rule.
pub static RULE: Rule = Rule {
    name: "lock-convoy",
    summary: "many threads queue for one lock",
    needs: &[Needs::Waits],
    params: &[],
    check,
    doc: "\
Once a second every futex that is a lock is looked at. Where several threads of a process wait for the same lock in two
looks or more, that is a convoy: the threads run one after the other, whatever the number of CPUs.

The first stack is that of the holder, where the lock says who holds it and the holder blocks; the second is where most
waiters wait.

Make the part under the lock shorter, in particular move I/O out of it, or divide the lock.",
};

fn check(run: &Run, _: &Values<'_>) -> Vec<Finding> {
    let name = Namer::new(run.blocking.as_ref());
    let convoys = run.blocking.iter().flat_map(|blocking| &blocking.convoys);
    let finding = |convoy: &crate::model::wait::Convoy| {
        let holder = match convoy.holder {
            Some(holder) => format!("held by {}", name.thread(holder)),
            None => "holder unknown".to_owned(),
        };
        let title = format!(
            "up to {} threads of {} (pid {}) queue for one lock ({:#x}), in {} looks; {holder}",
            convoy.waiters, convoy.process, convoy.pid, convoy.futex, convoy.seen
        );
        let mut stacks = evidence(run.names(), "holder at", convoy.holder_stack);
        stacks.extend(evidence(run.names(), "waiting at", convoy.waiter_stack));
        let place = functions(run.names(), convoy.waiter_stack)
            .last()
            .map_or_else(String::new, |name| (*name).to_owned());
        Finding {
            rule: RULE.name,
            severity: convoy.severity,
            bottleneck: Bottleneck::Lock,
            process: ProcessName { pid: convoy.pid, name: convoy.process.clone() },
            subject: place,
            title,
            advice: "make the part under the lock shorter: move I/O out of it, or divide the lock".to_owned(),
            cost: Cost::default(),
            evidence: stacks,
            details: BTreeMap::from([
                ("futex", json!(convoy.futex)),
                ("waiters", json!(convoy.waiters)),
                ("seen", json!(convoy.seen)),
                ("holder_tid", json!(convoy.holder.map(|holder| holder.tid))),
            ]),
        }
    };
    convoys.map(finding).collect()
}
