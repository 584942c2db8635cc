//! Builds and joins everything.
/// Runs the agent until it is told to stop.
///
/// # Errors
/// Always, until the stages are joined.
pub fn run(config: crate::config::Config) -> anyhow::Result<()> {
    anyhow::bail!("cluster {}: the stages are not joined yet", config.cluster_name)
}
