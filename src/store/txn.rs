//! Transactions: which branch is taken, whether all of it is allowed, and only then its effects.
//! Follows etcd's order: every condition, nested ones too, is decided on the state before the
//! first write; every check that can fail comes before it as well, so a failure changes nothing.
use bytes::Bytes;

use super::{
    Compare, CompareOp, CompareTarget, Error, KeyRange, Record, Txn, TxnOp, TxnOpResponse,
    TxnResponse, record::Fields, state::State,
};
use crate::limits;

impl Txn {
    /// Refuses what no state of the store would accept; `Store::txn` does so as well.
    ///
    /// # Errors
    /// `EmptyKey`, `TooDeep`, `DuplicateKey`.
    pub fn check(&self) -> Result<(), Error> {
        check_depth(self, 0)?;
        check_keys(&self.success)?;
        check_keys(&self.failure)?;
        Ok(())
    }
}

/// Runs a transaction into the open revision; the caller commits.
pub(super) fn run(state: &mut State, txn: &Txn) -> Result<TxnResponse, Error> {
    let mut path = Vec::new();
    decide(state, txn, &mut path);
    let mut puts = |op: &TxnOp| check_put(state, op);
    check(txn, &mut path.iter().copied(), &mut puts)?;
    let mut ranges = |op: &TxnOp| check_range(state, op);
    check(txn, &mut path.iter().copied(), &mut ranges)?;
    apply(state, txn, &mut path.into_iter())
}

fn check_depth(txn: &Txn, depth: usize) -> Result<(), Error> {
    if depth > limits::TXN_DEPTH_MAX {
        return Err(Error::TooDeep);
    }
    if txn
        .compare
        .iter()
        .any(|compare| compare.range.key.is_empty())
    {
        return Err(Error::EmptyKey);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Txn(inner) => check_depth(inner, depth + 1)?,
            TxnOp::Range(request) if request.range.key.is_empty() => return Err(Error::EmptyKey),
            TxnOp::Delete(request) if request.range.key.is_empty() => return Err(Error::EmptyKey),
            TxnOp::Range(_) | TxnOp::Delete(_) | TxnOp::Put(_) => {}
        }
    }
    Ok(())
}

/// The keys a list of steps may write, to refuse two writes of one key in one revision.
#[derive(Default)]
struct Writes<'a> {
    puts: std::collections::HashSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Writes<'a> {
    fn add_put(&mut self, key: &'a Bytes) -> Result<(), Error> {
        if !self.puts.insert(key) || self.deletes.iter().any(|range| range.contains(key)) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }
}

fn check_keys(ops: &[TxnOp]) -> Result<Writes<'_>, Error> {
    let mut writes = Writes::default();
    for op in ops {
        // Etcd overlooks deletions that go on to the last key; then the later step counts.
        if let TxnOp::Delete(request) = op
            && !request.range.is_from_key()
        {
            writes.deletes.push(&request.range);
        }
    }
    for op in ops {
        let TxnOp::Txn(txn) = op else { continue };
        let success = check_keys(&txn.success)?;
        let failure = check_keys(&txn.failure)?;
        // Only one branch runs, so a key in both is one write.
        for key in success.puts.union(&failure.puts) {
            writes.add_put(key)?;
        }
        writes.deletes.extend(success.deletes);
        writes.deletes.extend(failure.deletes);
    }
    for op in ops {
        if let TxnOp::Put(request) = op {
            writes.add_put(&request.key)?;
        }
    }
    Ok(writes)
}

fn branch(txn: &Txn, succeeded: bool) -> &[TxnOp] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// Records, in the order of `apply`, which branch each transaction takes.
fn decide(state: &State, txn: &Txn, path: &mut Vec<bool>) {
    let succeeded = txn.compare.iter().all(|compare| holds(state, compare));
    path.push(succeeded);
    for op in branch(txn, succeeded) {
        if let TxnOp::Txn(inner) = op {
            decide(state, inner, path);
        }
    }
}

/// Runs one check over all steps that would be taken. All puts are checked before any read, so
/// that of several mistakes the same is reported as by etcd.
fn check(
    txn: &Txn,
    path: &mut impl Iterator<Item = bool>,
    one: &mut impl FnMut(&TxnOp) -> Result<(), Error>,
) -> Result<(), Error> {
    for op in branch(txn, path.next().unwrap_or(false)) {
        match op {
            TxnOp::Txn(inner) => check(inner, path, one)?,
            op => one(op)?,
        }
    }
    Ok(())
}

fn check_put(state: &State, op: &TxnOp) -> Result<(), Error> {
    let TxnOp::Put(request) = op else {
        return Ok(());
    };
    state.check_kept(request)?;
    state.check_put(request)
}

fn check_range(state: &State, op: &TxnOp) -> Result<(), Error> {
    match op {
        TxnOp::Range(request) if request.revision < 0 && request.revision < state.compacted => {
            Err(Error::Compacted {
                compact_revision: state.compacted,
            })
        }
        TxnOp::Range(request) => state.check_revision(request.revision),
        _ => Ok(()),
    }
}

fn apply(
    state: &mut State,
    txn: &Txn,
    path: &mut impl Iterator<Item = bool>,
) -> Result<TxnResponse, Error> {
    let succeeded = path.next().unwrap_or(false);
    let ops = branch(txn, succeeded);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        responses.push(match op {
            TxnOp::Range(request) => TxnOpResponse::Range(state.range(request)?.into()),
            TxnOp::Put(request) => TxnOpResponse::Put(state.put(request)),
            TxnOp::Delete(request) => TxnOpResponse::Delete(state.delete(request)),
            TxnOp::Txn(inner) => TxnOpResponse::Txn(apply(state, inner, path)?),
        });
    }
    Ok(TxnResponse {
        revision: state.open_revision(),
        succeeded,
        responses,
    })
}

fn holds(state: &State, compare: &Compare) -> bool {
    let mut kvs = state.iter(&compare.range).map(Record::fields).peekable();
    if kvs.peek().is_some() {
        return kvs.all(|kv| holds_for(&kv, compare));
    }
    // A value that does not exist compares to nothing; its numbers are zero.
    !matches!(compare.target, CompareTarget::Value(_)) && holds_for(&Fields::default(), compare)
}

fn holds_for(kv: &Fields<'_>, compare: &Compare) -> bool {
    let ordering = match &compare.target {
        CompareTarget::Version(given) => kv.version.cmp(given),
        CompareTarget::Create(given) => kv.create_revision.cmp(given),
        CompareTarget::Mod(given) => kv.mod_revision.cmp(given),
        CompareTarget::Value(given) => kv.value.cmp(given.as_ref()),
        CompareTarget::Lease(given) => kv.lease.cmp(given),
    };
    match compare.op {
        CompareOp::Equal => ordering.is_eq(),
        CompareOp::Greater => ordering.is_gt(),
        CompareOp::Less => ordering.is_lt(),
        CompareOp::NotEqual => ordering.is_ne(),
    }
}
