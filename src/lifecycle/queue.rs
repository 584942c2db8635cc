//! The bounded carrier between stages: at most one pending value per key, latest wins.
//!
//! Always true: `pending <= max`; a key pushed again keeps its place in the order of insertion.
//! At its bound the queue empties itself and says so in the next batch: the consumer then owes a
//! full reconcile, which covers what was thrown away. A producer therefore never waits.
use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use tokio::sync::Notify;

use crate::limits::QUEUE_KEPT_CAPACITY;

/// The queue; all clones are the same one.
#[derive(Debug)]
pub struct Coalescing<K, V>(Arc<Inner<K, V>>);

impl<K, V> Clone for Coalescing<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What one pop took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<V> {
    /// Latest values in the order in which their keys were first pushed; one per key.
    pub items: Vec<V>,
    /// Values were thrown away since the last batch: reconcile everything, then apply `items`.
    pub lost: bool,
}

#[derive(Debug)]
struct Inner<K, V> {
    max: usize,
    state: Mutex<State<K, V>>,
    notify: Notify,
    condvar: Condvar,
}

#[derive(Debug)]
struct State<K, V> {
    order: VecDeque<K>,
    values: HashMap<K, V>,
    lost: bool,
    /// Values taken or thrown away since the start.
    taken: u64,
}

impl<K: Clone + Eq + Hash, V> Coalescing<K, V> {
    /// An empty queue for at most `max` keys (at least one).
    #[must_use]
    pub fn new(max: usize) -> Self {
        let state = State {
            order: VecDeque::new(),
            values: HashMap::new(),
            lost: false,
            taken: 0,
        };
        Self(Arc::new(Inner {
            max: max.max(1),
            state: Mutex::new(state),
            notify: Notify::new(),
            condvar: Condvar::new(),
        }))
    }

    /// Puts `value` in the place of the key's pending one, else at the end. Never waits. If the
    /// queue is full it is emptied first, and the next batch says `lost`.
    pub fn push(&self, key: K, value: V) {
        let mut state = super::lock(&self.0.state);
        if let Some(pending) = state.values.get_mut(&key) {
            *pending = value;
            return;
        }
        if state.order.len() == self.0.max {
            state.taken += state.order.len() as u64;
            state.order.clear();
            state.values.clear();
            state.lost = true;
        }
        state.order.push_back(key.clone());
        state.values.insert(key, value);
        let first = state.order.len() == 1;
        drop(state);
        if first {
            self.wake();
        }
    }

    /// [`Self::push`], but the value comes behind everything pending, also if the key has a place
    /// already; for values that speak of what was pushed before. Costs a search of the queue.
    pub fn push_last(&self, key: K, value: V) {
        let mut state = super::lock(&self.0.state);
        if state.values.remove(&key).is_some()
            && let Some(at) = state.order.iter().position(|k| *k == key)
        {
            state.order.remove(at);
            state.taken += 1;
        }
        drop(state);
        self.push(key, value);
    }

    /// How many values are pending; a moment's truth.
    #[must_use]
    pub fn len(&self) -> usize {
        super::lock(&self.0.state).order.len()
    }

    /// How many values were taken or thrown away since the start.
    #[must_use]
    pub fn taken(&self) -> u64 {
        super::lock(&self.0.state).taken
    }

    /// What [`Self::taken`] is once everything pending now is taken.
    #[must_use]
    pub fn end(&self) -> u64 {
        let state = super::lock(&self.0.state);
        state.taken + state.order.len() as u64
    }

    /// True if nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until there is something to do, then takes the oldest `max` values (at least one
    /// value, or `lost`). Cancel safe: what was not returned is still there.
    pub async fn pop_batch(&self, max: usize) -> Batch<V> {
        loop {
            let notified = self.0.notify.notified();
            if let Some(batch) = self.try_pop_batch(max) {
                return batch;
            }
            notified.await;
        }
    }

    /// [`Self::pop_batch`] for a thread without a runtime; an empty batch once `timeout` passed.
    #[must_use]
    pub fn pop_batch_blocking_timeout(&self, max: usize, timeout: Duration) -> Batch<V> {
        let idle = |state: &mut State<K, V>| state.order.is_empty() && !state.lost;
        let state = super::lock(&self.0.state);
        // The guard is dropped on purpose: taking is the same code for both kinds of consumers.
        drop(self.0.condvar.wait_timeout_while(state, timeout, idle));
        self.try_pop_batch(max).unwrap_or_else(|| Batch {
            items: Vec::new(),
            lost: false,
        })
    }

    /// Takes what is there; `None` if nothing is.
    #[must_use]
    pub fn try_pop_batch(&self, max: usize) -> Option<Batch<V>> {
        let mut guard = super::lock(&self.0.state);
        let state = &mut *guard;
        if state.order.is_empty() && !state.lost {
            return None;
        }
        let count = state.order.len().min(max.max(1));
        let taken = state.order.drain(..count);
        let items = taken.filter_map(|key| state.values.remove(&key)).collect();
        state.taken += count as u64;
        let lost = std::mem::take(&mut state.lost);
        let more = !state.order.is_empty();
        if !more && state.order.capacity() > QUEUE_KEPT_CAPACITY {
            // An initial list needs far more room than anything that comes after it.
            state.order.shrink_to(QUEUE_KEPT_CAPACITY);
            state.values.shrink_to(QUEUE_KEPT_CAPACITY);
        }
        drop(guard);
        if more {
            // Another consumer may be waiting, and `push` wakes only for the first value.
            self.wake();
        }
        Some(Batch { items, lost })
    }

    fn wake(&self) {
        self.0.notify.notify_one();
        self.0.condvar.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Batch, Coalescing};

    #[test]
    fn latest_value_wins_in_its_first_place() {
        let queue = Coalescing::new(8);
        queue.push("a", 1);
        queue.push("b", 2);
        queue.push("a", 3);
        assert_eq!(
            queue.try_pop_batch(1),
            Some(Batch {
                items: vec![3],
                lost: false
            })
        );
        queue.push("a", 4);
        assert_eq!(
            queue.try_pop_batch(9),
            Some(Batch {
                items: vec![2, 4],
                lost: false
            })
        );
        assert_eq!(queue.try_pop_batch(9), None);
    }

    #[test]
    fn a_value_that_is_to_be_last_leaves_its_place() {
        let queue = Coalescing::new(8);
        for (key, value) in [("a", 1), ("b", 2), ("c", 3)] {
            queue.push(key, value);
        }
        queue.push_last("a", 4);
        queue.push_last("d", 5);
        let batch = queue.try_pop_batch(9);
        assert_eq!(batch.unwrap().items, [2, 3, 4, 5]);
    }

    #[test]
    fn full_queue_empties_itself_and_says_lost_once() {
        let queue = Coalescing::new(2);
        for key in 0..3 {
            queue.push(key, key);
        }
        assert_eq!(
            queue.try_pop_batch(9),
            Some(Batch {
                items: vec![2],
                lost: true
            })
        );
        assert_eq!(queue.try_pop_batch(9), None);
    }

    #[tokio::test]
    async fn waiting_consumers_of_both_kinds_are_woken() {
        let queue = Coalescing::new(2);
        let pushed = queue.clone();
        let (batch, ()) = tokio::join!(queue.pop_batch(9), async move { pushed.push(1, 1) });
        assert_eq!(batch.items, [1]);
        let pushed = queue.clone();
        let thread = std::thread::spawn(move || {
            queue.pop_batch_blocking_timeout(9, Duration::from_secs(30))
        });
        pushed.push(2, 2);
        assert_eq!(thread.join().unwrap().items, [2]);
        let empty = pushed.pop_batch_blocking_timeout(9, Duration::from_millis(1));
        assert_eq!(
            empty,
            Batch {
                items: vec![],
                lost: false
            }
        );
    }

    proptest! {
        // Goal: whatever the interleaving of pushes and pops, the queue equals a naive list.
        #[test]
        fn equals_a_naive_model(
            max in 1_usize..6,
            ops in prop::collection::vec(prop_oneof![
                4 => (0_u8..8, any::<u16>()).prop_map(|(key, value)| Ok((key, value))),
                1 => (1_usize..5).prop_map(Err),
            ], 0..80),
        ) {
            let queue = Coalescing::new(max);
            let mut model: Vec<(u8, u16)> = Vec::new();
            let mut lost = false;
            for op in ops {
                match op {
                    Ok((key, value)) => {
                        queue.push(key, value);
                        if let Some(pending) = model.iter_mut().find(|p| p.0 == key) {
                            pending.1 = value;
                        } else {
                            if model.len() == max {
                                model.clear();
                                lost = true;
                            }
                            model.push((key, value));
                        }
                    }
                    Err(count) => {
                        let items: Vec<u16> =
                            model.drain(..count.min(model.len())).map(|p| p.1).collect();
                        let expected = (!items.is_empty() || lost).then_some(Batch { items, lost });
                        prop_assert_eq!(queue.try_pop_batch(count), expected);
                        lost = false;
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
