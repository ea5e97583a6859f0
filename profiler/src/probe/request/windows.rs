//! When bytes that are moved on sockets are looked at: all the time, or in windows, as far as that is within a budget.

use anyhow::Result;

use crate::{
    kernel::{
        function_hooks,
        port::{Hook, Port},
    },
    probe::{
        budget::{self, Budget, Order},
        spec::Context,
    },
    process::clock::{Clock, Every},
};

/// Where Linux 6.3 and newer tell of bytes moved on any socket.
pub const MOVED: [(&str, &str); 2] =
    [("socket_received", "sock_recv_length"), ("socket_sent", "sock_send_length")];

/// Functions that move bytes, for older kernels.
const FUNCTIONS: [function_hooks::Hook; 7] = [
    ("sent_inet", "inet_sendmsg"),
    ("sent_inet6", "inet6_sendmsg"),
    ("sent_unix", "unix_stream_sendmsg"),
    ("sent_page", "inet_sendpage"),
    ("received_inet", "inet_recvmsg"),
    ("received_inet6", "inet6_recvmsg"),
    ("received_unix", "unix_stream_recvmsg"),
];

/// What tells of moved bytes in this kernel.
#[derive(Debug, PartialEq)]
pub enum Hooks {
    /// Tracepoints.
    Tracepoints,
    /// Functions that return.
    Functions(Vec<function_hooks::Hook>),
    /// Nothing.
    None,
}

impl Hooks {
    /// Attaches whatever there is.
    pub fn find(kernel: &mut dyn Port) -> Result<Hooks> {
        if Hooks::Tracepoints.attach(kernel).is_ok() {
            return Ok(Hooks::Tracepoints);
        }
        let hooks = match function_hooks::allowed(&FUNCTIONS) {
            allowed if allowed.is_empty() => Hooks::None,
            allowed => Hooks::Functions(allowed),
        };
        hooks.attach(kernel)?;
        Ok(hooks)
    }

    fn attach(&self, kernel: &mut dyn Port) -> Result<()> {
        match self {
            Hooks::Tracepoints => MOVED.into_iter().try_for_each(|(program, tracepoint)| {
                kernel.attach(Hook::Tracepoint { program, tracepoint })
            }),
            Hooks::Functions(hooks) => kernel.attach(Hook::Returns(hooks)),
            Hooks::None => Ok(()),
        }
    }

    fn pause(&self, kernel: &mut dyn Port) -> Result<()> {
        let hooks = match self {
            Hooks::Tracepoints => &MOVED[..],
            Hooks::Functions(hooks) => hooks,
            Hooks::None => &[],
        };
        hooks.iter().try_for_each(|(program, _)| kernel.pause(program))
    }
}

/// When it is watched.
pub struct Windows {
    hooks: Hooks,
    /// Where it is watched only as far as that is within a budget.
    budget: Option<Budget>,
    look: Every,
    clock: Clock,
    began_ns: u64,
    ended_ns: Option<u64>,
}

impl Windows {
    /// From now on.
    pub fn new(hooks: Hooks, budget: Option<Budget>, clock: &Clock) -> Windows {
        Windows {
            hooks,
            budget,
            look: Every::new(clock, budget::LOOK_INTERVAL),
            clock: clock.clone(),
            began_ns: clock.now_ns(),
            ended_ns: None,
        }
    }

    /// Compares what has been spent with what has been earned, and begins or ends a window. `closed` is called between the end
    /// of one and the beginning of the next, with the time.
    pub fn keep_within_budget(&mut self, cx: &mut Context<'_>, closed: impl FnOnce(u64)) -> Result<()> {
        let Some(budget) = self.budget.as_mut().filter(|_| self.ended_ns.is_none()) else { return Ok(()) };
        if !self.look.is_due() {
            return Ok(());
        }
        self.look.restart();
        let now_ns = self.clock.now_ns();
        match budget.look(now_ns, budget::of_requests(cx)) {
            Order::Keep => Ok(()),
            Order::Open => self.hooks.attach(cx.kernel),
            Order::Close => {
                self.hooks.pause(cx.kernel)?;
                closed(now_ns);
                Ok(())
            }
        }
    }

    /// The run has ended.
    pub fn end(&mut self) {
        self.ended_ns = Some(self.clock.now_ns());
    }

    /// For how long it was watched, ns.
    pub fn watched_ns(&self) -> u64 {
        let now_ns = self.ended_ns.unwrap_or_else(|| self.clock.now_ns());
        let always = now_ns.saturating_sub(self.began_ns);
        self.budget.as_ref().map_or(always, |budget| budget.watched_ns(now_ns))
    }

    /// How many times it was begun again, once watching all the time had become too dear; and whether that was so.
    pub fn again(&self) -> Option<u64> {
        let budget = self.budget.as_ref()?;
        budget.was_closed().then(|| budget.windows())
    }
}
