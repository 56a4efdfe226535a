//! What the next step does: a pure function of what every job could do.

use celslm_model::PREFILL_CHUNK;

use super::fair::FairQueue;

/// What a job could do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Nothing before more of its context has arrived.
    Nothing,
    /// Its next token.
    Decode,
    /// A piece of its prompt or context, through all layers.
    Piece {
        /// The most tokens that it can take in.
        tokens: usize,
    },
    /// Its whole prompt through the layers whose KV has arrived.
    Layers {
        /// Tokens of the prompt.
        tokens: usize,
        /// Layers that may run.
        layers: usize,
    },
}

/// A job as the scheduler sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) id: u64,
    pub(super) client: u32,
    pub(super) want: Want,
}

/// What a step does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Prompts that run some layers by themselves, first.
    pub(super) layers: Vec<(u64, usize)>,
    /// Jobs with tokens in the ragged pass, and how many.
    pub(super) rows: Vec<(u64, usize)>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.rows.is_empty()
    }
}

/// The policy. Its only state is whose turn it is.
pub(super) struct Scheduler {
    step_tokens: usize,
    num_layers: usize,
    fair: FairQueue,
}

impl Scheduler {
    pub(super) fn new(step_tokens: usize, num_layers: usize) -> Self {
        Self {
            step_tokens: step_tokens.max(1),
            num_layers: num_layers.max(1),
            fair: FairQueue::default(),
        }
    }

    /// The next step for jobs in the order of their admission.
    ///
    /// Everyone who generates takes part. Beside them, prompts and contexts share `step_tokens`
    /// through all layers, so that nobody waits for a whole chunk between two tokens; where nobody
    /// generates, a chunk. A job has at most one piece, which is cut to what is left, and one
    /// token or layer always fits, so that everything gets done.
    pub(super) fn plan(&mut self, candidates: &[Candidate]) -> Plan {
        let mut plan = Plan::default();
        plan.rows.extend(
            candidates
                .iter()
                .filter(|job| job.want == Want::Decode)
                .map(|job| (job.id, 1)),
        );
        let tokens = match plan.rows.is_empty() {
            true => self.step_tokens.max(PREFILL_CHUNK),
            false => self.step_tokens,
        };
        // Counted in tokens times layers, in which both kinds of prompt work are alike.
        let budget = tokens.saturating_mul(self.num_layers);
        let mut left = budget;
        let num_layers = self.num_layers;
        let work = candidates
            .iter()
            .filter(|job| matches!(job.want, Want::Piece { .. } | Want::Layers { .. }))
            .map(|job| (job.client, *job));
        self.fair.offer(work, |job| {
            let untouched = left == budget;
            match job.want {
                Want::Piece { tokens } => {
                    let tokens = tokens.min(left / num_layers);
                    if tokens == 0 {
                        return false;
                    }
                    left -= tokens * num_layers;
                    plan.rows.push((job.id, tokens));
                }
                Want::Layers { tokens, layers } => {
                    let fitting = left / tokens.max(1);
                    if fitting == 0 && !untouched {
                        return false;
                    }
                    let layers = layers.min(fitting.max(1));
                    left = left.saturating_sub(tokens.saturating_mul(layers));
                    plan.layers.push((job.id, layers));
                }
                Want::Nothing | Want::Decode => {}
            }
            true
        });
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, client: u32, want: Want) -> Candidate {
        Candidate { id, client, want }
    }

    fn piece(id: u64, client: u32, tokens: usize) -> Candidate {
        job(id, client, Want::Piece { tokens })
    }

    #[test]
    fn all_who_generate_take_part_whatever_is_prefilled() {
        let mut scheduler = Scheduler::new(256, 4);
        let plan = scheduler.plan(&[
            job(1, 0, Want::Decode),
            piece(2, 0, 256),
            piece(3, 0, 256),
            job(4, 1, Want::Decode),
            job(5, 1, Want::Nothing),
        ]);
        assert_eq!(plan.rows, [(1, 1), (4, 1), (2, 256)]);
        assert!(plan.layers.is_empty());
        assert!(scheduler.plan(&[job(5, 1, Want::Nothing)]).is_empty());
    }

    #[test]
    fn prompts_share_a_step_until_its_tokens_are_used_up() {
        let mut scheduler = Scheduler::new(256, 4);
        let jobs = [
            piece(1, 0, 100),
            piece(2, 0, 100),
            piece(3, 0, 57),
            piece(4, 0, 56),
        ];
        // The third is cut, and the fourth of the same client may not overtake it.
        assert_eq!(scheduler.plan(&jobs).rows, [(1, 100), (2, 100), (3, 56)]);
    }

    #[test]
    fn pieces_are_small_only_beside_those_who_generate() {
        let mut scheduler = Scheduler::new(64, 4);
        let context = piece(1, 0, 256);
        assert_eq!(scheduler.plan(&[context]).rows, [(1, 256)]);
        let decoding = job(2, 0, Want::Decode);
        assert_eq!(scheduler.plan(&[context, decoding]).rows, [(2, 1), (1, 64)]);
        // Two share what there is.
        let short = piece(3, 1, 20);
        let rows = scheduler.plan(&[short, decoding, context]).rows;
        assert_eq!(rows.iter().map(|(_, tokens)| tokens).sum::<usize>(), 65);
        assert!(rows.contains(&(3, 20)), "{rows:?}");
    }

    #[test]
    fn a_client_with_many_contexts_does_not_keep_another_from_its_prompt() {
        let mut scheduler = Scheduler::new(256, 4);
        let mut jobs: Vec<_> = (0..10).map(|id| piece(id, 0, 256)).collect();
        jobs.push(piece(10, 1, 30));
        let steps: Vec<_> = (0..3).map(|_| scheduler.plan(&jobs).rows).collect();
        assert!(
            steps.iter().take(2).any(|rows| rows.contains(&(10, 30))),
            "{steps:?}"
        );
        let first = |rows: &Vec<(u64, usize)>| rows.iter().any(|(id, _)| *id == 0);
        assert!(steps.iter().any(first), "{steps:?}");
    }

    #[test]
    fn layers_share_the_budget_with_pieces() {
        let mut scheduler = Scheduler::new(256, 4);
        let layers = |id, layers| {
            job(
                id,
                id as u32,
                Want::Layers {
                    tokens: 200,
                    layers,
                },
            )
        };
        // 1024 token-layers: five layers of 200 tokens fit beside nothing else.
        let plan = scheduler.plan(&[layers(1, 3), layers(2, 3), layers(3, 3)]);
        assert_eq!(plan.layers, [(1, 3), (2, 2)]);
        // The third had no room and begins the next round.
        let plan = scheduler.plan(&[layers(1, 4), layers(3, 1), job(4, 4, Want::Decode)]);
        assert_eq!(plan.layers, [(3, 1), (1, 4)]);
        assert_eq!(plan.rows, [(4, 1)]);
        // One layer always fits.
        let huge = job(
            1,
            0,
            Want::Layers {
                tokens: 9999,
                layers: 2,
            },
        );
        assert_eq!(scheduler.plan(&[huge]).layers, [(1, 1)]);
    }
}
