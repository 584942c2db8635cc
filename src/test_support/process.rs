//! Child processes with deadlines: one-shot commands, and helpers that talk in lines.
use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::pause;

/// Bytes kept of one stream of a one-shot command.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// Lines of a helper that wait to be read; then the helper waits.
const LINES_MAX: usize = 65_536;
/// How often an ended child is looked for.
const POLL: Duration = Duration::from_millis(5);

/// What a one-shot command left behind.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
}

/// The command as a person would type it.
#[must_use]
pub fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs a command to its end; it is killed after `limit`.
///
/// # Errors
/// If it can't be started or does not end in time. A failed exit status is not an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let text = describe(command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {text}"))?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + limit;
    let status = wait_until(&mut child, deadline).with_context(|| format!("run {text}"))?;
    // A grandchild may hold the pipes open: the deadline bounds that, too.
    let read = |from: Receiver<Vec<u8>>| {
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
        let bytes = from.recv_timeout(left).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Output {
        status,
        stdout: read(stdout),
        stderr: read(stderr),
    })
}

/// As [`run`], and a failed exit status is an error that quotes both streams.
///
/// # Errors
/// If the command can't be started, does not end in time, or fails.
pub fn run_ok(command: &mut Command, limit: Duration) -> Result<String> {
    let output = run(command, limit)?;
    if !output.status.success() {
        let (stdout, stderr) = (output.stdout.trim(), output.stderr.trim());
        bail!(
            "{} ended with {}: {stdout} {stderr}",
            describe(command),
            output.status
        );
    }
    Ok(output.stdout)
}

fn collect(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = sync_channel(1);
    if let Some(stream) = stream {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // A broken pipe ends the output like its regular end does.
            drop(stream.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes));
            drop(sender.send(bytes));
        });
    }
    receiver
}

/// Waits for a child; kills it at the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for the child")? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill().context("kill the child")?;
            child.wait().context("wait for the killed child")?;
            bail!("did not end in time and was killed");
        }
        pause(POLL);
    }
}

/// A running helper with piped input and output; killed when dropped.
#[derive(Debug)]
pub struct Helper {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Helper {
    /// Starts the command; its standard error goes where ours goes.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("start {name}: {}", describe(command)))?;
        let (sender, lines) = sync_channel(LINES_MAX);
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let stdin = child.stdin.take();
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            lines,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line, waiting at most `limit`; `None` if the helper closed its output.
    ///
    /// # Errors
    /// If no line comes in time.
    pub fn line(&self, limit: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "{} printed nothing for {} s",
                    self.name,
                    limit.as_secs_f32()
                )
            }
        }
    }

    /// All lines that are there now.
    pub fn lines_now(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Sends one line.
    ///
    /// # Errors
    /// If the helper ended, or its input is closed.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .stdin
            .as_mut()
            .with_context(|| format!("{}: input closed", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("write to {}", self.name))
    }

    /// Closes the input, which asks a helper to finish, and returns the lines left until its end.
    ///
    /// # Errors
    /// If it does not end within `limit`, or ends with a failure.
    pub fn finish(mut self, limit: Duration) -> Result<Vec<String>> {
        self.stdin = None;
        let deadline = Instant::now() + limit;
        let mut lines = Vec::new();
        while let Some(line) = self.line(deadline.saturating_duration_since(Instant::now()))? {
            lines.push(line);
        }
        let status = wait_until(&mut self.child, deadline).with_context(|| self.name.clone())?;
        if !status.success() {
            bail!("{} ended with {status}: {}", self.name, lines.join("; "));
        }
        Ok(lines)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only if the child ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
