//! Two regions come up together and know how to reach each other.

use testbed::load::Pgbench;
use testbed::region::{DATABASE, ROLE};
use testbed::{TwoRegions, checksum};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_regions_come_up() {
    let started = std::time::Instant::now();
    let regions = TwoRegions::start_both(15, 18).await.unwrap();
    println!("started in {:?}", started.elapsed());
    regions.execute_both("create table t(id int primary key)").await.unwrap();

    let remote = regions.us.kafka.remote();
    let expected = format!(
        "region = \"eu-west-1\"\n\
         \n[database]\nurl = \"{}\"\n\
         \n[kafka]\nbrokers = [\"{}\"]\nreplication_factor = 1\nmin_insync_replicas = 1\n\
         \n[source]\ntables = [\"public.*\", \"app.orders\"]\n\
         \n[[link]]\nfrom = \"us-east-1\"\nbrokers = [\"{remote}\"]\n\
         \n[http]\nlisten = \"{}\"\n",
        regions.eu.postgres.url_as(ROLE, DATABASE),
        regions.eu.kafka.local(),
        regions.eu.http,
    );
    assert_eq!(regions.eu.config().source(&["public.*", "app.orders"]).link(&regions.us).to_toml(), expected);
    assert_ne!(remote, regions.us.kafka.local());

    let pgbench = Pgbench::new(&regions.us.url()).unwrap();
    pgbench.create_tables().await.unwrap();
    pgbench.fill(1).await.unwrap();
    let mut load = pgbench.start(2, Some(100.0)).unwrap();
    testbed::eventually(std::time::Duration::from_secs(60), "pgbench has written", async || {
        let client = regions.us.connect().await?;
        let sums = checksum::tables(&client, "public").await?;
        Ok(sums["public.pgbench_history"].rows > 20)
    })
    .await
    .unwrap();
    assert!(load.is_running(), "{}", load.log_tail());
    load.stop().await.unwrap();
    let client = regions.us.connect().await.unwrap();
    let sums = checksum::database(&client).await.unwrap();
    assert_eq!(sums["public.pgbench_accounts"].rows, 100_000);
    assert_eq!(checksum::differences(&sums, &sums), Vec::<String>::new());
}
