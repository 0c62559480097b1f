//! Medians and quartiles.

/// The median; 0 of nothing.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The lower quartile; 0 of nothing. Other users of the machine can only make a time longer, so this is nearer than the
/// median to what a path takes by itself.
pub(crate) fn lower_quartile(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.25)
}

/// Between two values it is interpolated.
fn quantile(values: impl IntoIterator<Item = f64>, part: f64) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = part * last as f64;
    let below = place as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::{lower_quartile, median};

    #[test]
    fn quartiles_lie_between_their_neighbours() {
        assert_eq!(lower_quartile([5.0, 1.0, 2.0, 3.0, 100.0]), 2.0);
        assert_eq!(lower_quartile([4.0, 1.0, 2.0, 3.0]), 1.75);
        assert_eq!(lower_quartile([7.0]), 7.0);
        assert_eq!(lower_quartile([]), 0.0);
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median([3.0, 1.0, 100.0]), 3.0);
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median([]), 0.0);
    }
}
