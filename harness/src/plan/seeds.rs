//! Seeds by name, so that a new component shifts no other component's stream.

/// Derives every seed of an experiment from its root seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    root: u64,
}

impl Seeds {
    /// Seeds below `root`.
    #[must_use]
    pub fn new(root: u64) -> Self {
        Self { root }
    }

    /// The seed of the component called `name`: the first 8 bytes of a BLAKE3 hash over the root
    /// seed and the name. A hierarchy is written with slashes, for example `cell/main/lan`.
    #[must_use]
    pub fn derive(&self, name: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("celslm experiment seeds, version 1");
        hasher.update(&self.root.to_le_bytes());
        hasher.update(name.as_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Seeds;

    #[test]
    fn names_and_roots_give_different_seeds_that_never_change() {
        let seeds = Seeds::new(7);
        assert_eq!(seeds.derive("dataset"), Seeds::new(7).derive("dataset"));
        assert_ne!(seeds.derive("dataset"), seeds.derive("workload"));
        assert_ne!(seeds.derive("dataset"), Seeds::new(8).derive("dataset"));
    }
}
