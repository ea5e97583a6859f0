//! Values: what was measured and what was found, as outputs, rules and recordings share it. No input or output, no clock,
//! no rule.

pub mod abi;
pub mod cause;
pub mod comparison;
pub mod distribution;
pub mod finding;
pub mod function;
pub mod kind;
pub mod loss;
pub mod measured;
pub mod memory;
pub mod module;
pub mod part;
pub mod report;
pub mod request;
pub mod sample;
pub mod sections;
pub mod series;
pub mod stack;
pub mod syscall;
pub mod text;
pub mod threshold;
pub mod totals;
pub mod units;
pub mod vitals;
pub mod wait;
