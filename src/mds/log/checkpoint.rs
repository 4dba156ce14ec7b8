//! Applying a half's changes to the store below, here or on a thread beside.
//!
//! # Contract
//!
//! **Ownership**: when the outcome is told nobody here holds the changes any more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};

use crate::mds::store::{Changes, Store, StoreError};

/// Name of the thread.
const THREAD_NAME: &str = "flipside-mds-log";

/// Applies changes to a store, one commit at a time.
pub enum Checkpointer<S> {
    /// At once, by whoever begins it: the same calls give the same calls of the store.
    Inline(S),
    /// On a thread of its own, while appends go on.
    Thread(Worker),
}

/// The thread's other end. Dropped, it waits for the commit that is on its way.
pub struct Worker {
    work: Option<Sender<Arc<Changes>>>,
    done: Receiver<Result<(), StoreError>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: Store + 'static> Checkpointer<S> {
    /// One with a thread.
    pub fn on_thread(mut store: S) -> io::Result<Self> {
        let (work, waiting) = channel::<Arc<Changes>>();
        let (ended, done) = channel();
        let run = move || {
            while let Ok(changes) = waiting.recv() {
                let outcome = store.commit(&changes);
                drop(changes);
                if ended.send(outcome).is_err() {
                    return;
                }
            }
        };
        let thread = Builder::new().name(THREAD_NAME.to_owned()).spawn(run)?;
        Ok(Checkpointer::Thread(Worker { work: Some(work), done, thread: Some(thread) }))
    }

    /// Begins to apply the changes; gives the outcome where it is known at once.
    pub fn begin(&mut self, changes: &Arc<Changes>) -> Option<Result<(), StoreError>> {
        match self {
            Checkpointer::Inline(store) => Some(store.commit(changes)),
            Checkpointer::Thread(worker) => worker.ask(Arc::clone(changes)).err().map(Err),
        }
    }

    /// How the one that was begun, and whose outcome was not told yet, has ended; where it has not,
    /// `wait`s for that or gives none.
    pub fn outcome(&mut self, wait: bool) -> Option<Result<(), StoreError>> {
        let Checkpointer::Thread(worker) = self else { return None };
        if wait {
            return Some(worker.done.recv().unwrap_or_else(|_| Err(ended_early())));
        }
        match worker.done.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(ended_early())),
        }
    }
}

impl Worker {
    fn ask(&self, changes: Arc<Changes>) -> Result<(), StoreError> {
        let channel = self.work.as_ref().expect("it has work until it is dropped");
        channel.send(changes).map_err(|_| ended_early())
    }
}

fn ended_early() -> StoreError {
    StoreError::Failed("the thread that applies its log has ended".to_owned())
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened, and ends the server at the next commit.
            let _ = thread.join();
        }
    }
}
