//! What a long encode or decode is at: a line on the terminal that appears after a second.

use std::time::Duration;

use image_sdl::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::ReportArgs;
use crate::output;

/// Shorter work is not worth a line.
const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(200);

/// A line that goes when this does.
pub(crate) struct Line(Option<ProgressBar>);

impl Line {
    /// For one file; several have a bar of their own. Nothing is shown where nobody looks.
    pub fn new(files: usize, report: &ReportArgs) -> Self {
        if files != 1 || report.quiet || !output::stderr_is_terminal() {
            return Line(None);
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {pos}/{len}, {elapsed}");
        let bar = ProgressBar::hidden()
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
            .with_message("loading");
        let shown = bar.clone();
        std::thread::spawn(move || {
            std::thread::sleep(PATIENCE);
            if !shown.is_finished() {
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TICK);
            }
        });
        Line(Some(bar))
    }

    /// Whom the codec shall tell.
    pub fn listener(&self) -> Option<Progress> {
        let bar = self.0.clone()?;
        Some(Progress::new(move |stage, done, of| {
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            bar.set_message(stage.name());
            true
        }))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
