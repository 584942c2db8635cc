//! The policy language, proved by an evaluator of its own: random policies as YAML text, random
//! identities, addresses and workloads, and packets of both directions.
mod aim;
mod coverage;
mod generate;
mod model;
mod naive;
mod policies;
mod yaml;

#[test]
fn dry() {
    use rand::SeedableRng as _;
    let mut rows = coverage::Rows::default();
    let (mut passed, mut all, mut refused) = (0, 0, 0);
    let start = std::time::Instant::now();
    for seed in 0..12 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut world = generate::world(&mut rng);
        let mut sources = generate::Sources::new();
        for round in 0..5 {
            if round > 0 {
                for _ in 0..4 {
                    let change = generate::change(&mut rng, &world);
                    generate::apply(&mut world, &change);
                }
            }
            for (name, policies) in &world.files {
                let text = yaml::file(policies);
                if let Err(error) = tombolo::policy::parse(&text, std::path::Path::new(name)) {
                    refused += 1;
                    if refused < 10 {
                        eprintln!("{error:?}");
                    }
                }
            }
            for _ in 0..400 {
                let packet = generate::packet(&mut rng, &world, &mut sources);
                all += 1;
                passed += u32::from(naive::passes(&world, &packet, &mut rows));
            }
        }
    }
    eprintln!("{passed} of {all} pass, {refused} refused, {:?}", start.elapsed());
    eprintln!("{}", rows.rare(100));
}
