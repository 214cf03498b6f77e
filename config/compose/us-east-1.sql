-- What `landfall check --grants` asks for in us-east-1: to read the log, to apply under an origin, and to
-- write the table that comes in. The owner of the tables publishes the one that goes out.
grant set on parameter session_replication_role to landfall;
grant execute on function
    pg_replication_origin_create(text), pg_replication_origin_oid(text),
    pg_replication_origin_session_setup(text), pg_replication_origin_xact_setup(pg_lsn, timestamptz)
    to landfall;
create schema landfall authorization landfall;
create publication landfall for table orders
    with (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);
grant usage on schema public to landfall;
grant select, insert, update, delete, truncate on reviews to landfall;
-- What backfill, verify, repair and recover read beside that: the table that goes out.
grant select on orders to landfall;
