//! Work on many tiles, on as many threads as asked for, results in order.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::Error;

/// Runs `work` on every item; with one thread in the caller's own. The first error stops what has not begun.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(usize, &T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let threads = threads.min(items.len());
    if threads <= 1 {
        return items.iter().enumerate().map(|(i, item)| work(i, item)).collect();
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let results: Vec<Mutex<Option<Result<R, Error>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(i) else { break };
                    let result = work(i, item);
                    if result.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    if let Ok(mut slot) = results[i].lock() {
                        *slot = Some(result);
                    }
                }
            });
        }
    });
    let mut all = Vec::with_capacity(items.len());
    let mut first_error = None;
    for slot in results {
        match slot.into_inner().ok().flatten() {
            Some(Ok(result)) => all.push(result),
            Some(Err(error)) if first_error.is_none() => first_error = Some(error),
            _ => {}
        }
    }
    match first_error {
        Some(error) => Err(error),
        None => Ok(all),
    }
}

/// `asked`, with 0 replaced by the number of processors.
pub(crate) fn thread_count(asked: usize) -> usize {
    if asked > 0 { asked } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order_and_an_error_comes_out() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [1, 4] {
            let squares = map(&items, threads, |_, &n| Ok(n * n)).unwrap();
            assert!(squares.iter().enumerate().all(|(i, &s)| s == i * i));
            let failed = map(&items, threads, |_, &n| if n == 7 { Err(Error::Interrupted) } else { Ok(n) });
            assert!(matches!(failed, Err(Error::Interrupted)));
        }
    }
}
