//! Which differences are significant, of all that are compared of a kind.

use crate::{
    detect::trend,
    model::{
        comparison::{Change, KindComparison},
        kind::ProfileKind,
    },
};

/// Corrects chances for the number of places, and brings places in order.
pub fn judged(
    kind: ProfileKind,
    mut total: Change,
    mut places: Vec<Change>,
    too_small: usize,
) -> KindComparison {
    let mut tested: Vec<&mut (f64, f64)> =
        places.iter_mut().chain([&mut total]).filter_map(|change| change.chance.as_mut()).collect();
    let chances: Vec<f64> = tested.iter().map(|(chance, _)| *chance).collect();
    for (of, adjusted) in tested.iter_mut().zip(trend::false_discovery(&chances)) {
        of.1 = adjusted;
    }
    let rank = |of: &Change| (of.is_significant() != Some(true), of.place.idle);
    places.sort_by(|a, b| {
        let size = |of: &Change| of.units.value.abs();
        rank(a).cmp(&rank(b)).then(size(b).total_cmp(&size(a))).then_with(|| a.place.cmp(&b.place))
    });
    let blind: Vec<f64> = places
        .iter()
        .filter(|change| change.is_significant() == Some(false) && !change.place.idle)
        .filter_map(|change| change.points.margin())
        .collect();
    KindComparison { kind, total, blind_points: trend::quantile(&blind, 0.9), places, too_small }
}
