//! The programs on their interfaces: pinned TCX links, taken over and replaced in place.
//! Always true: nothing is detached because this process ends, and a link that lives is never
//! removed before its successor is there.
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, TcAttachType,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{
    Error, Kernel,
    load::{PROGRAMS, classifier},
};

impl Kernel {
    fn link_path(&self, ifindex: u32, direction: &str) -> PathBuf {
        self.links.join(format!("{ifindex}-{direction}"))
    }

    /// Puts our program onto a pinned link; false if the link's interface is gone, then the pin
    /// is gone too.
    fn take_over(&mut self, path: &Path, program: &'static str) -> Result<bool, Error> {
        let fail = |op, source| Error::Link {
            op,
            link: file_name(path),
            source,
        };
        let Ok(pinned) = PinnedLink::from_pin(path) else {
            return Ok(false);
        };
        let link = SchedClassifierLink::try_from(FdLink::from(pinned))
            .map_err(|error| fail("open", io::Error::other(error)))?;
        let classifier = classifier(&mut self.ebpf, program)?;
        if let Ok(id) = classifier.attach_to_link(link) {
            // Dropping the link closes our descriptor; the pin keeps the link alive.
            drop(
                classifier
                    .take_link(id)
                    .map_err(|error| fail("keep", io::Error::other(error)))?,
            );
            return Ok(true);
        }
        // ENOLINK: the interface was deleted under it.
        fs::remove_file(path).map_err(|source| fail("detach", source))?;
        Ok(false)
    }

    fn attach_one(
        &mut self,
        ifindex: u32,
        name: &str,
        (program, direction, attach_type): (&'static str, &str, TcAttachType),
    ) -> Result<(), Error> {
        let path = self.link_path(ifindex, direction);
        if path.exists() && self.take_over(&path, program)? {
            return Ok(());
        }
        let fail = |op, source| Error::Link {
            op,
            link: file_name(&path),
            source,
        };
        let classifier = classifier(&mut self.ebpf, program)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = classifier
            .attach_with_options(name, attach_type, order)
            .map_err(|error| fail("attach", io::Error::other(error)))?;
        let link: FdLink = classifier
            .take_link(id)
            .map_err(|error| fail("attach", io::Error::other(error)))?
            .try_into()
            .map_err(|error| fail("attach", io::Error::other(error)))?;
        link.pin(&path)
            .map_err(|error| fail("pin", io::Error::other(error)))?;
        Ok(())
    }

    /// Puts our programs onto every pinned link, collects the pins whose interface is gone, and
    /// gives back the interfaces with all programs attached.
    pub(super) fn take_over_all(&mut self) -> Result<HashSet<u32>, Error> {
        let directory = |source| Error::Directory {
            path: self.links.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.links).map_err(directory)? {
            names.push(
                entry
                    .map_err(directory)?
                    .file_name()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
        let mut attached = HashMap::<u32, usize>::new();
        for name in names {
            let Some((index, direction)) = name.split_once('-') else {
                continue;
            };
            let Ok(ifindex) = index.parse::<u32>() else {
                continue;
            };
            let Some((program, ..)) = PROGRAMS.iter().find(|(_, d, _)| *d == direction) else {
                continue;
            };
            if self.take_over(&self.links.join(&name), program)? {
                *attached.entry(ifindex).or_default() += 1;
            }
        }
        Ok(attached
            .into_iter()
            .filter(|(_, n)| *n == PROGRAMS.len())
            .map(|(i, _)| i)
            .collect())
    }

    /// Attaches both programs, or replaces what is attached.
    pub(super) fn attach_both(&mut self, ifindex: u32, name: &str) -> Result<(), Error> {
        PROGRAMS
            .into_iter()
            .try_for_each(|program| self.attach_one(ifindex, name, program))
    }

    /// Detaches both programs; also right if they are gone.
    pub(super) fn detach_both(&mut self, ifindex: u32) -> Result<(), Error> {
        for (_, direction, _) in PROGRAMS {
            // Without its pin nothing holds the link, and the kernel detaches it.
            match fs::remove_file(self.link_path(ifindex, direction)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let link = format!("{ifindex}-{direction}");
                    return Err(Error::Link {
                        op: "detach",
                        link,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
