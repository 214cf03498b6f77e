//! Real Postgres clusters, a real Kafka, the WAN between them and an independent ledger.
