//! How one policy object is imported: what is not enforced is refused, or can only narrow.
use super::{ParseError, Refusal};
use crate::policy::yaml::{At, Fields};

/// A field of Cilium's language that is not enforced here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unsupported {
    pub(super) name: &'static str,
    /// What is not done.
    pub(super) reason: &'static str,
    /// What to write instead.
    pub(super) instead: &'static str,
}

/// The import of one object.
///
/// Readers of parts return what covers everything that the part may mean: without what was noted
/// as not enforced, never less. Whoever allows something by such a part must leave it out.
#[derive(Debug)]
pub(super) struct Import<'n> {
    /// Whether what is not enforced is noted instead of refused.
    pub(super) fail_closed: bool,
    /// What was noted so far.
    pub(super) narrowed: &'n mut Vec<ParseError>,
}

impl Import<'_> {
    /// The mapping's fields. Those that are `unsupported` are refused or noted, those that are
    /// not `known` either are misspelt.
    pub(super) fn fields<'a>(
        &mut self,
        at: &At<'a>,
        known: &[&str],
        unsupported: &[Unsupported],
    ) -> Result<Fields<'a>, ParseError> {
        at.fields_or(known, |name, field| {
            let Some(found) = unsupported.iter().find(|u| u.name == name) else {
                return Err(field.refuse(Refusal::UnknownField));
            };
            let Unsupported {
                reason, instead, ..
            } = *found;
            let error = field.refuse(Refusal::Unsupported { reason, instead });
            if !self.fail_closed {
                return Err(error);
            }
            self.narrowed.push(error);
            Ok(())
        })
    }

    /// Runs `read` and says, too, whether everything in it is enforced.
    pub(super) fn understood<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, ParseError>,
    ) -> Result<(T, bool), ParseError> {
        let before = self.narrowed.len();
        let value = read(self)?;
        Ok((value, self.narrowed.len() == before))
    }
}
