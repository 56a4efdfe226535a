//! A fork-join pool for regions of microseconds.
//!
//! A decode step has about a hundred parallel regions of 20 to 200 µs. Work-stealing pools
//! wake their threads through queues and condition variables, which costs a good part of
//! that; here a region is one atomic increment, and a worker that has nothing to do spins for
//! a moment and then sleeps, so that an idle pool takes no processor time from its neighbours.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Rounds of spinning before a thread sleeps; a round is some 40 cycles, so this is about the
/// length of the row-wise stretches between two regions of a forward pass.
const SPINS: u32 = 2_000;

/// What all threads of a region call, with the thread's index.
type Region = dyn Fn(usize) + Sync;

/// The region in progress, with its lifetime erased; see [`Pool::run`].
#[derive(Clone, Copy)]
struct Job(*const Region);

#[expect(unsafe_code, reason = "a region's closure is shared with the workers")]
// SAFETY: the closure is `Sync`, and `Pool::run` does not return before every worker is done
// with it.
unsafe impl Send for Job {}

#[derive(Default)]
struct Shared {
    /// Counts regions; a change is the signal to start.
    epoch: AtomicUsize,
    /// Workers that have not finished the region.
    running: AtomicUsize,
    /// Whether a worker panicked in the region.
    panicked: AtomicBool,
    job: Mutex<Option<Job>>,
    /// Workers asleep; guarded so that a wake-up is never lost.
    asleep: Mutex<usize>,
    wake: Condvar,
}

/// Threads that run regions together with the caller.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    /// One region, and one forward pass, at a time.
    turn: Mutex<()>,
}

static THREADS: OnceLock<usize> = OnceLock::new();
static POOL: OnceLock<Pool> = OnceLock::new();

/// Sets the number of threads of the process's pool, and of candle's; `false` when this one runs
/// already with another. To be called before anything computes.
pub(crate) fn set_threads(threads: usize) -> bool {
    let threads = threads.max(1);
    let first = || {
        // candle starts threads of its own at the first large tensor, one for each core of the
        // machine whatever this process may run on, and they spin.
        #[expect(unsafe_code, reason = "only the environment tells candle how many")]
        // SAFETY: once in a process, and by what is asked of the caller before there are threads that
        // could look at its environment.
        unsafe {
            std::env::set_var("CANDLE_NUM_THREADS", threads.to_string());
        }
        threads
    };
    *THREADS.get_or_init(first) == threads
}

/// The process's pool. Without [`set_threads`] it has a thread for every processor.
pub(crate) fn pool() -> &'static Pool {
    POOL.get_or_init(|| {
        let threads = *THREADS
            .get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        Pool::new(threads)
    })
}

/// Exclusive use of the pool, for the length of a forward pass.
pub(crate) struct Turn<'a> {
    pool: &'a Pool,
    _guard: MutexGuard<'a, ()>,
}

impl Pool {
    fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let mut started = 1;
        for index in 1..threads {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("compute-{index}"));
            // Fewer threads than asked for are slower, not wrong.
            if thread.spawn(move || shared.serve(index)).is_err() {
                break;
            }
            started += 1;
        }
        Self {
            shared,
            threads: started,
            turn: Mutex::new(()),
        }
    }

    /// Waits for the pool.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn {
            pool: self,
            // A region that panicked has ended; the lock protects no data.
            _guard: self.turn.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Turn<'_> {
    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads
    }

    /// Calls `region` on every thread at once, with indices from 0, and waits for all.
    ///
    /// # Panics
    /// When the region panics on any thread.
    pub(crate) fn run(&self, region: &(dyn Fn(usize) + Sync)) {
        let shared = &self.pool.shared;
        let workers = self.pool.threads - 1;
        if workers == 0 {
            region(0);
            return;
        }
        #[expect(unsafe_code, reason = "the workers outlive the region's borrows")]
        // SAFETY: only the lifetime changes. `Finish` below waits for every worker before this
        // frame ends, by return or by unwinding, so no worker uses the closure afterwards.
        let job = Job(unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Region>(region)
        });
        *lock(&shared.job) = Some(job);
        shared.running.store(workers, Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::Release);
        if *lock(&shared.asleep) > 0 {
            shared.wake.notify_all();
        }
        struct Finish<'a>(&'a Shared);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                let mut spins = 0u32;
                while self.0.running.load(Ordering::Acquire) > 0 {
                    spins += 1;
                    if spins < SPINS {
                        std::hint::spin_loop();
                    } else {
                        // The worker lost its processor: give it this one.
                        std::thread::yield_now();
                    }
                }
            }
        }
        let finish = Finish(shared);
        region(0);
        drop(finish);
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a compute thread panicked"
        );
    }

    /// Calls `work` for every index below `count`, each once, on whichever thread is free. Which
    /// thread that is must not change a result.
    pub(crate) fn each(&self, count: usize, work: &(dyn Fn(usize) + Sync)) {
        if count <= 1 || self.pool.threads == 1 {
            (0..count).for_each(work);
            return;
        }
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                work(index);
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every update is one assignment, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_region(seen);
            let job = *lock(&self.job);
            if let Some(Job(region)) = job {
                #[expect(unsafe_code, reason = "see Pool::run")]
                // SAFETY: `Turn::run` keeps the closure alive until `running` is zero.
                let region = unsafe { &*region };
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    region(index);
                }));
                if outcome.is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns the epoch of a region after `seen`.
    fn wait_for_region(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut asleep = lock(&self.asleep);
        loop {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            *asleep += 1;
            asleep = self
                .wake
                .wait(asleep)
                .unwrap_or_else(PoisonError::into_inner);
            *asleep -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_worked_on_once_by_all_regions() {
        let pool = Pool::new(3);
        let turn = pool.turn();
        assert_eq!(turn.threads(), 3);
        for round in 0..2_000 {
            let hits: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
            turn.each(hits.len(), &|index| {
                hits[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1),
                "round {round}"
            );
            if round % 500 == 0 {
                // Long enough for the workers to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
        }
    }

    #[test]
    fn a_panic_in_a_region_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let turn = pool.turn();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            turn.run(&|index| assert_ne!(index, 1, "on purpose"));
        }));
        assert!(outcome.is_err());
        let count = AtomicUsize::new(0);
        turn.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
