//! The programs on their interfaces: pinned TCX links, or filters of a clsact discipline.
//!
//! Always true: nothing is detached because this process ends; what is attached is replaced in one
//! step, also when the mode changes: the new program is there before the old one goes.
//! Kept below the pins, as the kernel forgets who made what: a TCX link is pinned as
//! `links/<ifindex>-<direction>`; a filter, which lives without a pin, is recorded as a directory
//! `filters/<ifindex>-<direction>`, and a discipline that we made as `qdiscs/<ifindex>`.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};

use super::{Error, load::classifier, tc};

/// How programs are attached, once it is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By pinned links.
    Tcx,
    /// By filters.
    Clsact,
}

/// A program and where it belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// Of the function in `bpf/`.
    pub(super) name: &'static str,
    /// Last part of a pin's name.
    pub(super) direction: &'static str,
    pub(super) tcx: TcAttachType,
    pub(super) clsact: tc::Hook,
}

pub(super) const PROGRAMS: [Program; 2] = [
    // to_container first: a new endpoint must not be reachable before it is guarded.
    Program {
        name: "to_container",
        direction: "egress",
        tcx: TcAttachType::Egress,
        clsact: tc::Hook::Egress,
    },
    Program {
        name: "from_container",
        direction: "ingress",
        tcx: TcAttachType::Ingress,
        clsact: tc::Hook::Ingress,
    },
];

/// The directories below that of a version.
pub(super) const LINKS: &str = "links";
pub(super) const FILTERS: &str = "filters";
pub(super) const QDISCS: &str = "qdiscs";

/// Where our programs are attached.
pub(super) struct Links {
    pub(super) mode: Mode,
    pins: PathBuf,
    filters: PathBuf,
    disciplines: PathBuf,
}

impl Links {
    /// Below `directory`, which exists; makes what is missing.
    pub(super) fn open(directory: &Path, mode: Mode) -> Result<Self, Error> {
        let links = Self {
            mode,
            pins: directory.join(LINKS),
            filters: directory.join(FILTERS),
            disciplines: directory.join(QDISCS),
        };
        for path in [&links.pins, &links.filters, &links.disciplines] {
            fs::create_dir_all(path).map_err(|source| Error::Directory {
                path: path.clone(),
                source,
            })?;
        }
        Ok(links)
    }

    /// Puts our programs onto everything that is attached, brings it to the present mode, collects
    /// what belongs to interfaces that are gone, and gives back those with all programs attached.
    pub(super) fn take_over_all(&self, ebpf: &mut Ebpf) -> Result<HashSet<u32>, Error> {
        let mut tcx = Attached::default();
        for (ifindex, program, name) in recorded(&self.pins)? {
            if take_over_link(ebpf, &self.pins.join(name), program)? {
                tcx.add(ifindex);
            }
        }
        let mut clsact = Attached::default();
        for (ifindex, program, name) in recorded(&self.filters)? {
            if take_over_filter(ebpf, ifindex, program)? {
                clsact.add(ifindex);
            } else {
                remove_record(&self.filters.join(name))?;
            }
        }
        self.collect_disciplines()?;
        let (mut present, other) = match self.mode {
            Mode::Tcx => (tcx.all(), clsact),
            Mode::Clsact => (clsact.all(), tcx),
        };
        if !other.0.is_empty() {
            let names: BTreeMap<u32, String> = interfaces()?.into_iter().collect();
            for ifindex in other.0.into_keys() {
                if let Some(name) = names.get(&ifindex) {
                    self.attach(ebpf, ifindex, name)?;
                    present.insert(ifindex);
                }
            }
        }
        Ok(present)
    }

    /// Attaches all programs, or replaces what is attached; then removes those of the other mode.
    pub(super) fn attach(&self, ebpf: &mut Ebpf, ifindex: u32, name: &str) -> Result<(), Error> {
        for program in &PROGRAMS {
            match self.mode {
                Mode::Tcx => self.attach_link(ebpf, ifindex, name, program)?,
                Mode::Clsact => self.attach_filter(ebpf, ifindex, name, program)?,
            }
        }
        match self.mode {
            Mode::Tcx => self.remove_filters(ifindex),
            Mode::Clsact => self.remove_links(ifindex),
        }
    }

    /// Detaches all programs; also right if they, or the interface, are gone.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), Error> {
        self.remove_links(ifindex)?;
        self.remove_filters(ifindex)
    }

    /// Where a link's pin is.
    pub(super) fn pin(&self, name: &str) -> PathBuf {
        self.pins.join(name)
    }

    fn attach_link(
        &self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        name: &str,
        program: &Program,
    ) -> Result<(), Error> {
        let path = self.pins.join(record(ifindex, program));
        if path.exists() && take_over_link(ebpf, &path, program)? {
            return Ok(());
        }
        let fail = |op| move |source| fail(op, ifindex, program, source);
        let classifier = classifier(ebpf, program.name)?;
        // A program before ours could let packets past it; what comes after ours only narrows.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = classifier
            .attach_with_options(name, program.tcx, order)
            .map_err(io::Error::other)
            .map_err(fail("attach"))?;
        let link: FdLink = classifier
            .take_link(id)
            .map_err(io::Error::other)
            .map_err(fail("attach"))?
            .try_into()
            .map_err(io::Error::other::<aya::programs::links::LinkError>)
            .map_err(fail("attach"))?;
        link.pin(&path)
            .map_err(io::Error::other)
            .map_err(fail("pin"))?;
        Ok(())
    }

    fn attach_filter(
        &self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        name: &str,
        program: &Program,
    ) -> Result<(), Error> {
        let fail = |source| fail("attach", ifindex, program, source);
        let there = tc::filters(ifindex, program.clsact).map_err(fail)?;
        if let Some(foreign) = there
            .iter()
            .find(|f| f.at_our_place() && f.name != program.name)
        {
            return Err(fail(io::Error::other(format!(
                "priority {} handle {:#x} of {name} holds the filter {:?} (program {}), which is \
                 not ours; remove it or give it another place",
                tc::PRIORITY,
                tc::HANDLE,
                foreign.name,
                foreign.program,
            ))));
        }
        // The record first: what is not recorded would outlive us unseen.
        make_record(&self.filters.join(record(ifindex, program)))?;
        let loaded = classifier(ebpf, program.name)?;
        let fd = loaded.fd().map_err(io::Error::other).map_err(fail)?;
        let fd = std::os::fd::AsFd::as_fd(fd);
        if tc::set_filter(ifindex, program.clsact, fd, program.name).map_err(fail)? {
            make_record(&self.disciplines.join(ifindex.to_string()))?;
        }
        Ok(())
    }

    fn remove_links(&self, ifindex: u32) -> Result<(), Error> {
        for program in &PROGRAMS {
            // Without its pin nothing holds the link, and the kernel detaches it.
            match fs::remove_file(self.pins.join(record(ifindex, program))) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(fail("detach", ifindex, program, source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn remove_filters(&self, ifindex: u32) -> Result<(), Error> {
        for program in &PROGRAMS {
            let path = self.filters.join(record(ifindex, program));
            if path.exists() {
                remove_own_filter(ifindex, program)?;
                remove_record(&path)?;
            }
        }
        let discipline = self.disciplines.join(ifindex.to_string());
        if discipline.exists() {
            if !has_foreign_filters(ifindex)? {
                remove_discipline(ifindex)?;
            }
            remove_record(&discipline)?;
        }
        Ok(())
    }

    /// Forgets disciplines whose interface is gone.
    fn collect_disciplines(&self) -> Result<(), Error> {
        let recorded = names(&self.disciplines)?;
        if recorded.is_empty() {
            return Ok(());
        }
        let there: HashSet<String> = interfaces()?
            .into_iter()
            .map(|(index, _)| index.to_string())
            .collect();
        for name in recorded.iter().filter(|name| !there.contains(*name)) {
            remove_record(&self.disciplines.join(name))?;
        }
        Ok(())
    }
}

/// How many of our programs each interface has.
#[derive(Default)]
struct Attached(HashMap<u32, usize>);

impl Attached {
    fn add(&mut self, ifindex: u32) {
        *self.0.entry(ifindex).or_default() += 1;
    }

    /// Interfaces with all of them.
    fn all(&self) -> HashSet<u32> {
        let all = self.0.iter().filter(|(_, n)| **n == PROGRAMS.len());
        all.map(|(ifindex, _)| *ifindex).collect()
    }
}

/// Takes our filter away if it is ours by its name.
pub(super) fn remove_own_filter(ifindex: u32, program: &Program) -> Result<bool, Error> {
    if !has_own_filter(ifindex, program)? {
        return Ok(false);
    }
    tc::remove_filter(ifindex, program.clsact)
        .map_err(|source| fail("detach", ifindex, program, source))?;
    Ok(true)
}

/// Whether our filter is there, told by place and name.
pub(super) fn has_own_filter(ifindex: u32, program: &Program) -> Result<bool, Error> {
    Ok(filters(ifindex, program)?
        .iter()
        .any(|filter| is_ours(filter, program)))
}

/// Whether the interface has filters that are not ours.
pub(super) fn has_foreign_filters(ifindex: u32) -> Result<bool, Error> {
    for program in &PROGRAMS {
        let there = filters(ifindex, program)?;
        if there.iter().any(|filter| !is_ours(filter, program)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes the discipline away with all its filters.
pub(super) fn remove_discipline(ifindex: u32) -> Result<(), Error> {
    tc::remove_clsact(ifindex).map_err(|source| fail("detach", ifindex, &PROGRAMS[0], source))
}

fn filters(ifindex: u32, program: &Program) -> Result<Vec<tc::Filter>, Error> {
    tc::filters(ifindex, program.clsact)
        .map_err(|source| fail("list filters of", ifindex, program, source))
}

fn is_ours(filter: &tc::Filter, program: &Program) -> bool {
    filter.at_our_place() && filter.name == program.name
}

/// All interfaces: index and name.
pub(super) fn interfaces() -> Result<Vec<(u32, String)>, Error> {
    tc::interfaces().map_err(|source| Error::Interfaces { source })
}

/// Puts our program onto a pinned link; false if the link's interface is gone, then the pin is
/// gone too.
pub(super) fn take_over_link(
    ebpf: &mut Ebpf,
    path: &Path,
    program: &Program,
) -> Result<bool, Error> {
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
    let classifier = classifier(ebpf, program.name)?;
    match classifier.attach_to_link(link) {
        Ok(id) => {
            // Dropping the link closes our descriptor; the pin keeps the link alive.
            drop(
                classifier
                    .take_link(id)
                    .map_err(|error| fail("keep", io::Error::other(error)))?,
            );
            Ok(true)
        }
        Err(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOLINK) =>
        {
            // The interface was deleted under it.
            fs::remove_file(path).map_err(|source| fail("detach", source))?;
            Ok(false)
        }
        Err(error) => Err(fail("take over", io::Error::other(error))),
    }
}

/// Puts our program into our filter's place; false if our filter is not there.
fn take_over_filter(ebpf: &mut Ebpf, ifindex: u32, program: &Program) -> Result<bool, Error> {
    let fail = |source| fail("take over", ifindex, program, source);
    if !has_own_filter(ifindex, program)? {
        return Ok(false);
    }
    let loaded = classifier(ebpf, program.name)?;
    let fd = loaded.fd().map_err(io::Error::other).map_err(fail)?;
    let fd = std::os::fd::AsFd::as_fd(fd);
    tc::set_filter(ifindex, program.clsact, fd, program.name).map_err(fail)?;
    Ok(true)
}

fn record(ifindex: u32, program: &Program) -> String {
    format!("{ifindex}-{}", program.direction)
}

/// What a directory of pins or records holds, with the file's name.
pub(super) fn recorded(directory: &Path) -> Result<Vec<(u32, &'static Program, String)>, Error> {
    let known = |name: String| {
        let (ifindex, program) = parse(&name)?;
        Some((ifindex, program, name))
    };
    Ok(names(directory)?.into_iter().filter_map(known).collect())
}

/// What the name of a pin or record says; the inverse of `record`.
pub(super) fn parse(name: &str) -> Option<(u32, &'static Program)> {
    let (ifindex, direction) = name.split_once('-')?;
    let program = PROGRAMS.iter().find(|p| p.direction == direction)?;
    Some((ifindex.parse().ok()?, program))
}

fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let fail = |source| Error::Directory {
        path: directory.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    Ok(names)
}

fn make_record(path: &Path) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(Error::Directory {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn remove_record(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Directory {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn fail(op: &'static str, ifindex: u32, program: &Program, source: io::Error) -> Error {
    Error::Link {
        op,
        link: record(ifindex, program),
        source,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
