//! The writer against answers made by hand.
use super::*;

fn writer() -> Writer {
    let mut writer = Writer::default();
    writer.granted(7);
    writer
}

/// The first write of a key.
fn put(key: &'static str, value: &'static str, lease: i64) -> Step {
    put_over(key, value, lease, 0)
}

/// A write of a key that is on the lease already.
fn again(key: &'static str, value: &'static str, lease: i64) -> Step {
    put_over(key, value, lease, lease)
}

fn put_over(key: &'static str, value: &'static str, lease: i64, over: i64) -> Step {
    let (key, value, over) = (key.into(), value.into(), Over::Lease(over));
    Step::Put {
        key,
        value,
        lease,
        over,
    }
}

fn delete(key: &'static str, lease: i64) -> Step {
    let key = key.into();
    Step::Delete { key, lease }
}

fn batch(writer: &mut Writer) -> Vec<Step> {
    match writer.next() {
        Next::Write(steps) => steps,
        other => panic!("no batch: {other:?}"),
    }
}

#[test]
fn only_what_changed_is_written_and_only_our_keys_are_deleted() {
    let mut writer = Writer::default();
    writer.put("a".to_owned(), b"1".to_vec());
    assert_eq!(writer.next(), Next::Grant);
    writer.granted(7);
    let steps = batch(&mut writer);
    assert_eq!(steps, [put("a", "1", 7)]);
    writer.done(steps, Vec::new());
    writer.put("a".to_owned(), b"1".to_vec());
    writer.delete("z");
    assert_eq!(writer.next(), Next::Idle);
    writer.put("a".to_owned(), b"2".to_vec());
    writer.put("b".to_owned(), b"1".to_vec());
    writer.delete("b");
    let steps = batch(&mut writer);
    assert_eq!(steps, [again("a", "2", 7)], "b was never there");
    writer.done(steps, Vec::new());
    writer.delete("a");
    assert_eq!(batch(&mut writer), [delete("a", 7)]);
    assert_eq!(writer.next(), Next::Idle);
}

#[test]
fn a_failed_batch_is_repeated_with_what_is_wanted_by_then() {
    let mut writer = writer();
    for key in ["a", "b", "c"] {
        writer.put(key.to_owned(), b"1".to_vec());
    }
    let steps = batch(&mut writer);
    writer.done(steps, Vec::new());
    writer.delete("a");
    writer.delete("b");
    writer.put("c".to_owned(), b"2".to_vec());
    let steps = batch(&mut writer);
    assert_eq!(steps.len(), 3);
    // While it is under way the wish for b comes back and that for c goes.
    writer.put("b".to_owned(), b"3".to_vec());
    writer.delete("c");
    writer.failed(steps);
    let steps = batch(&mut writer);
    assert_eq!(steps, [delete("a", 7), delete("c", 7), again("b", "3", 7)]);
    writer.done(steps, Vec::new());
    assert_eq!(writer.unwritten(), 0);
}

#[test]
fn a_lost_lease_means_all_of_its_keys_again() {
    let mut writer = writer();
    writer.put("a".to_owned(), b"1".to_vec());
    writer.put("b".to_owned(), b"1".to_vec());
    let steps = batch(&mut writer);
    writer.done(steps, Vec::new());
    writer.delete("b");
    assert_eq!(writer.lost(7), ["a"]);
    assert_eq!(writer.next(), Next::Grant);
    writer.granted(8);
    assert_eq!(batch(&mut writer), [put("a", "1", 8)]);
}

#[test]
fn a_lease_takes_a_thousand_keys() {
    let mut writer = writer();
    for index in 0..=limits::LEASE_KEYS_MAX {
        writer.put(format!("{index:05}"), Vec::new());
    }
    let mut written = 0;
    loop {
        match writer.next() {
            Next::Write(steps) => {
                assert!(steps.len() <= limits::STORE_BATCH_KEYS);
                written += steps.len();
                writer.done(steps, Vec::new());
            }
            Next::Grant => {
                assert_eq!(written, limits::LEASE_KEYS_MAX);
                writer.granted(8);
            }
            Next::Idle => break,
        }
    }
    assert_eq!(written, limits::LEASE_KEYS_MAX + 1);
    // Room comes back with deletions.
    writer.delete("00000");
    let steps = batch(&mut writer);
    writer.done(steps, Vec::new());
    assert_eq!(writer.reserve(1), Some(7));
}

#[test]
fn one_bad_key_holds_up_no_other() {
    let mut writer = writer();
    for key in ["a", "b", "c"] {
        writer.put(key.to_owned(), b"1".to_vec());
    }
    let steps = batch(&mut writer);
    assert_eq!(writer.refused(steps, "too large"), None);
    let mut written = Vec::new();
    while let Next::Write(steps) = writer.next() {
        assert_eq!(steps.len(), 1);
        if steps == [put("b", "1", 7)] {
            assert_eq!(writer.refused(steps, "too large"), Some("b".into()));
        } else {
            written.extend(steps.clone());
            writer.done(steps, Vec::new());
        }
    }
    assert_eq!(written, [put("a", "1", 7), put("c", "1", 7)]);
    assert_eq!(writer.refusals().count(), 1);
    // Another value gets another try.
    writer.put("b".to_owned(), b"2".to_vec());
    assert_eq!(batch(&mut writer), [put("b", "2", 7)]);
    assert_eq!(writer.refusals().count(), 0);
}

/// What a store has under a key.
fn kv(value: &'static str, lease: i64) -> Found {
    let value = value.into();
    Found { value, lease }
}

#[test]
fn the_first_node_keeps_a_key_and_the_next_follows() {
    let mut writer = writer();
    writer.put("a".to_owned(), b"ours".to_vec());
    let steps = batch(&mut writer);
    let theirs = Some(kv("theirs", 99));
    let (held, taken) = writer.done(steps, vec![theirs.clone()]);
    assert_eq!((held, taken), (vec!["a".into()], vec![]));
    assert_eq!(writer.next(), Next::Idle);
    assert_eq!(writer.contended().collect::<Vec<_>>(), ["a"]);
    // A later look at it changes nothing, nor does a newer value of ours.
    assert!(!writer.compared(&"a".into(), theirs.as_ref()));
    assert_eq!(writer.next(), Next::Idle);
    writer.put("a".to_owned(), b"newer".to_vec());
    let steps = batch(&mut writer);
    assert_eq!(steps, [put("a", "newer", 7)]);
    assert_eq!(writer.done(steps, vec![theirs]), (vec![], vec![]));
    writer.try_held();
    let steps = batch(&mut writer);
    assert_eq!(steps, [put("a", "newer", 7)]);
    assert_eq!(writer.done(steps, vec![None]), (vec![], vec!["a".into()]));
    assert_eq!(writer.contended().count(), 0);
    // It is ours: the other node's put, which does not respect it, is replaced.
    assert!(writer.compared(&"a".into(), Some(&kv("x", 0))));
    assert_eq!(batch(&mut writer), [again("a", "newer", 7)]);
    assert_eq!(writer.reserve(limits::LEASE_KEYS_MAX), None);
    assert_eq!(writer.reserve(limits::LEASE_KEYS_MAX - 1), Some(7));
}

#[test]
fn a_held_key_that_is_not_wanted_any_more_is_left_alone() {
    let mut writer = writer();
    writer.put("a".to_owned(), b"ours".to_vec());
    let steps = batch(&mut writer);
    writer.done(steps, vec![Some(kv("theirs", 99))]);
    writer.delete("a");
    writer.try_held();
    assert_eq!(writer.next(), Next::Idle);
    assert_eq!(writer.reserve(limits::LEASE_KEYS_MAX), Some(7));
}

#[test]
fn keys_of_this_nodes_last_process_are_written_over() {
    let mut writer = writer();
    writer.inherit([6]);
    writer.put("a".to_owned(), b"1".to_vec());
    let steps = batch(&mut writer);
    assert_eq!(writer.done(steps, vec![Some(kv("0", 6))]), (vec![], vec![]));
    let steps = batch(&mut writer);
    assert_eq!(steps, [put_over("a", "1", 7, 6)]);
    writer.done(steps, vec![None]);
    assert_eq!(writer.next(), Next::Idle);
}

#[test]
fn the_same_bytes_of_another_node_are_enough_and_no_conflict() {
    let mut writer = writer();
    writer.put("a".to_owned(), b"1".to_vec());
    let steps = batch(&mut writer);
    writer.done(steps, vec![Some(kv("1", 99))]);
    assert_eq!((writer.contended().count(), writer.unwritten()), (0, 0));
    writer.try_held();
    assert_eq!(batch(&mut writer), [put("a", "1", 7)]);
}

#[test]
fn held_keys_are_tried_in_turn() {
    let mut writer = writer();
    let keys = limits::STORE_BATCH_KEYS + 1;
    for index in 0..keys {
        writer.put(format!("{index:05}"), b"1".to_vec());
    }
    while let Next::Write(steps) = writer.next() {
        let found = steps.iter().map(|_| Some(kv("2", 99))).collect();
        writer.done(steps, found);
    }
    writer.try_held();
    assert_eq!(writer.unwritten(), limits::STORE_BATCH_KEYS);
    writer.try_held();
    assert_eq!(writer.unwritten(), keys);
}
