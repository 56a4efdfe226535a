//! How long work reports itself.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::clock;

/// Receives what a fetch or a check is doing.
pub trait Progress {
    /// A line worth keeping, such as a source that failed and what is tried next.
    fn message(&mut self, text: &str);
    /// A piece of work of `total_bytes` begins.
    fn start(&mut self, label: &str, total_bytes: u64);
    /// `bytes` more of it are done.
    fn advance(&mut self, bytes: u64);
    /// The piece of work is over, whether or not it is complete.
    fn finish(&mut self);
    /// Whether the user asked to stop. Asked at least once per mebibyte and once per second.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn message(&mut self, _text: &str) {}
    fn start(&mut self, _label: &str, _total_bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
}

/// A progress bar on a terminal, and elsewhere plain lines at most every five seconds. Both go to
/// standard error.
pub struct BarProgress {
    view: View,
    cancel: Option<Arc<AtomicBool>>,
}

enum View {
    Bar(ProgressBar),
    Lines(Lines),
}

/// The plain form: where lines go, how often, and the work in hand.
struct Lines {
    out: Box<dyn Write + Send>,
    interval: Duration,
    work: Option<Work>,
}

struct Work {
    label: String,
    total_bytes: u64,
    done_bytes: u64,
    printed: Instant,
}

impl BarProgress {
    /// Chooses the form by whether standard error is a terminal.
    pub fn new() -> Self {
        if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            Self {
                view: View::Bar(bar),
                cancel: None,
            }
        } else {
            Self::plain(Box::new(io::stderr()), Duration::from_secs(5))
        }
    }

    /// Plain lines to `out`, while work goes on at most one per `interval`.
    pub fn plain(out: Box<dyn Write + Send>, interval: Duration) -> Self {
        Self {
            view: View::Lines(Lines {
                out,
                interval,
                work: None,
            }),
            cancel: None,
        }
    }

    /// Stops the work once `flag` is true, as a handler of Ctrl-C sets it.
    #[must_use]
    pub fn cancel_on(mut self, flag: Arc<AtomicBool>) -> Self {
        self.cancel = Some(flag);
        self
    }
}

impl Default for BarProgress {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BarProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.view {
            View::Bar(_) => "bar",
            View::Lines(_) => "lines",
        };
        f.debug_struct("BarProgress")
            .field("form", &form)
            .finish_non_exhaustive()
    }
}

impl Progress for BarProgress {
    fn message(&mut self, text: &str) {
        match &mut self.view {
            // A hidden bar swallows lines, and a drawn one must be moved out of their way.
            View::Bar(bar) if bar.is_hidden() => write_line(&mut io::stderr(), text),
            View::Bar(bar) => bar.suspend(|| write_line(&mut io::stderr(), text)),
            View::Lines(lines) => write_line(&mut lines.out, text),
        }
    }

    fn start(&mut self, label: &str, total_bytes: u64) {
        match &mut self.view {
            View::Bar(bar) => {
                bar.finish_and_clear();
                *bar = ProgressBar::new(total_bytes)
                    .with_style(bar_style())
                    .with_message(label.to_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
            }
            View::Lines(lines) => {
                write_line(
                    &mut lines.out,
                    &format!("{label}: {}", HumanBytes(total_bytes)),
                );
                lines.work = Some(Work {
                    label: label.to_owned(),
                    total_bytes,
                    done_bytes: 0,
                    printed: clock::now(),
                });
            }
        }
    }

    fn advance(&mut self, bytes: u64) {
        match &mut self.view {
            View::Bar(bar) => bar.inc(bytes),
            View::Lines(Lines {
                out,
                interval,
                work: Some(work),
            }) => {
                work.done_bytes += bytes;
                let now = clock::now();
                if now.duration_since(work.printed) >= *interval {
                    work.printed = now;
                    write_line(out, &work.line());
                }
            }
            View::Lines(_) => {}
        }
    }

    fn finish(&mut self) {
        match &mut self.view {
            View::Bar(bar) => {
                bar.finish_and_clear();
                *bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            }
            View::Lines(lines) => {
                if let Some(work) = lines.work.take() {
                    write_line(&mut lines.out, &work.line());
                }
            }
        }
    }

    fn cancelled(&self) -> bool {
        self.cancel
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}

impl Work {
    fn line(&self) -> String {
        let percent = (self.done_bytes.saturating_mul(100))
            .checked_div(self.total_bytes)
            .unwrap_or(100);
        format!(
            "{}: {} of {} ({percent}%)",
            self.label,
            HumanBytes(self.done_bytes),
            HumanBytes(self.total_bytes)
        )
    }
}

/// Writes one line. A reader that went away must not end the work, so errors are dropped.
fn write_line(out: &mut dyn Write, text: &str) {
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(interval: Duration) -> Vec<String> {
        let page = Page::default();
        let mut progress = BarProgress::plain(Box::new(page.clone()), interval);
        progress.message("hub: no route; trying packages");
        progress.start("model a", 4096);
        for _ in 0..4 {
            progress.advance(1024);
        }
        progress.finish();
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn plain_lines_are_paced() {
        let paced = lines(Duration::from_secs(3600));
        assert_eq!(
            paced,
            [
                "hub: no route; trying packages",
                "model a: 4.00 KiB",
                "model a: 4.00 KiB of 4.00 KiB (100%)"
            ]
        );
        assert_eq!(lines(Duration::ZERO).len(), 3 + 4);
    }

    #[test]
    fn the_cancel_flag_is_seen() {
        let flag = Arc::new(AtomicBool::new(false));
        let progress =
            BarProgress::plain(Box::new(io::sink()), Duration::ZERO).cancel_on(Arc::clone(&flag));
        assert!(!progress.cancelled());
        flag.store(true, Ordering::Relaxed);
        assert!(progress.cancelled());
    }
}
