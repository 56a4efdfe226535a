//! Seeded orders that do not shift when something is added.
//!
//! Each item is ranked by a hash of the seed and its own name, not by a stream
//! of random numbers. A larger draw therefore keeps every item of a smaller
//! one, and a new item moves no other. The result depends on no library's
//! shuffle and is the same on every platform.

/// Hash of `seed`, a purpose and a name. Lengths are hashed too, so that no two
/// lists of parts collide by concatenation.
pub(crate) fn hash(seed: u64, parts: &[&str]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// A seed for one component, derived from `seed` by name.
pub(crate) fn derive(seed: u64, parts: &[&str]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash(seed, parts);
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A number that is uniform over 0 to 1, both excluded, derived from `seed` by
/// name.
pub(crate) fn uniform(seed: u64, parts: &[&str]) -> f64 {
    // 53 bits fill a mantissa; the half keeps 0 and 1 out.
    ((derive(seed, parts) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// The `count` items of lowest rank, in rank order; all of them when `count` is
/// `None` or larger than the list.
pub(crate) fn draw<T>(
    items: Vec<T>,
    count: Option<usize>,
    rank: impl FnMut(&T) -> [u8; 32],
) -> Vec<T> {
    let mut items = items;
    items.sort_by_cached_key(rank);
    if let Some(count) = count {
        items.truncate(count);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_draw_keeps_the_smaller_one() {
        let names: Vec<String> = (0..40).map(|i| format!("item-{i}")).collect();
        let all = draw(names.clone(), None, |n| hash(7, &["t", n]));
        for count in 0..names.len() {
            let some = draw(names.clone(), Some(count), |n| hash(7, &["t", n]));
            assert_eq!(some, all[..count]);
        }
        let other = draw(names.clone(), None, |n| hash(8, &["t", n]));
        assert_ne!(all, other);
    }

    #[test]
    fn adding_an_item_moves_no_other() {
        let names: Vec<String> = (0..20).map(|i| format!("item-{i}")).collect();
        let before = draw(names.clone(), None, |n| hash(3, &["t", n]));
        let mut more = names;
        more.push("item-new".to_owned());
        let mut after = draw(more, None, |n| hash(3, &["t", n]));
        after.retain(|n| n != "item-new");
        assert_eq!(before, after);
    }

    #[test]
    fn parts_do_not_collide_by_concatenation() {
        assert_ne!(hash(0, &["ab", "c"]), hash(0, &["a", "bc"]));
        assert_ne!(derive(0, &["x"]), derive(1, &["x"]));
    }
}
