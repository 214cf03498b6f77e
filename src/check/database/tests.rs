use super::*;
use crate::postgres::{
    catalog::{PublishedTable, UnlikePartition},
    grants::tests::role,
};

fn settings(text: &str) -> Settings {
    let text = format!("region = \"r\"\n[database]\nurl = \"postgres://lf@h/shop\"\n{text}");
    Settings::from_parts(&text, [], &|_| unreachable!()).unwrap()
}

fn both() -> Settings {
    settings(
        "[kafka]\nbrokers = [\"k:1\"]\n[source]\ntables = [\"public.*\"]\n[[link]]\nfrom = \"b\"\nbrokers = [\"k:1\"]",
    )
}

fn strangers(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("pg_{at}")).collect()
}

/// Those of the link, which has two sessions that copy.
fn ours() -> Vec<String> {
    (0..2).map(|lane| format!("landfall/b/main/{lane}")).collect()
}

fn server() -> ServerFacts {
    ServerFacts {
        version_number: 150_004,
        version: "15.4".into(),
        wal_level: "logical".into(),
        track_commit_timestamp: true,
        in_recovery: false,
        slots_max: 10,
        slots_used: 1,
        senders_max: 10,
        senders_used: 1,
        origins_max: 10,
        origins: Vec::new(),
        slot_keep_bytes: Some(1 << 30),
        slot_idle_timeout: None,
        data_directory: None,
        wal_bytes: 0,
        clock: 0,
        database: "shop".into(),
        standby_names: String::new(),
    }
}

fn table(name: &str) -> TableFacts {
    TableFacts {
        schema: "public".into(),
        table: name.into(),
        owner: "shop".into(),
        partitioned: false,
        logged: true,
        identity: 'd',
        identity_usable: true,
        unlike: None,
    }
}

fn published(names: &[&str]) -> PublicationFacts {
    let table = |name: &&str| PublishedTable {
        schema: "public".into(),
        table: (*name).into(),
        row_filter: None,
        columns_left_out: Vec::new(),
    };
    PublicationFacts {
        owner: "shop".into(),
        all_tables: false,
        operations_missing: Vec::new(),
        via_root: false,
        generated: false,
        tables: names.iter().map(table).collect(),
    }
}

fn slot() -> SlotFacts {
    SlotFacts {
        plugin: Some("pgoutput".into()),
        database: Some("shop".into()),
        active_pid: None,
        restart: None,
        confirmed_flush: None,
        wal_status: Some("reserved".into()),
        safe_wal_bytes: None,
        retained_bytes: Some(0),
        wal_size_bytes: 1 << 30,
        invalidation: None,
        synced: false,
    }
}

#[test]
fn a_server_is_judged_by_what_it_is_for() {
    for (change, expected) in [
        (&(|_: &mut ServerFacts| ()) as &dyn Fn(&mut ServerFacts), &[][..]),
        (&|it| it.version_number = 140_009, &["server-version"]),
        (&|it| it.wal_level = "replica".into(), &["wal-level"]),
        (&|it| it.track_commit_timestamp = false, &["track-commit-timestamp"]),
        (&|it| it.in_recovery = true, &["server-standby"]),
        (&|it| it.standby_names = "FIRST 1 (a, b)".into(), &[]),
        (&|it| it.standby_names = "*".into(), &["synchronous-standby"]),
        (&|it| it.slot_idle_timeout = Some("2d".into()), &["slot-idle"]),
        (&|it| it.origins = strangers(6), &[]),
        (&|it| it.origins = strangers(7), &["origins-left"]),
        (&|it| it.origins = [strangers(8), ours()].concat(), &[]),
    ] {
        let mut server = server();
        change(&mut server);
        let found: Vec<_> = of_server(&server, &both()).iter().map(|finding| finding.id.as_str()).collect();
        assert_eq!(found, expected, "{server:?}");
    }
}

#[test]
fn only_what_a_link_needs_is_asked_of_a_link() {
    let link = settings("[[link]]\nfrom = \"b\"\nbrokers = [\"k:1\"]");
    let poor = RolePrivileges { replication: false, ..role() };
    assert!(lacking(&poor, duties(&link)).is_empty());
    let found: Vec<_> =
        of_lacks(lacking(&poor, duties(&both()))).map(|finding| finding.id.as_str()).collect();
    assert_eq!(found, ["role-replication"]);
    let replica = ServerFacts { wal_level: "replica".into(), ..server() };
    assert!(of_server(&replica, &link).is_empty());
}

#[test]
fn tables_that_cannot_be_carried_are_named() {
    let source = both().source.unwrap();
    assert_eq!(tables::of_scope(&[], &source)[0].id.as_str(), "scope-empty");
    let keyless = TableFacts { identity_usable: false, ..table("b") };
    let unlogged = TableFacts { logged: false, ..table("c") };
    let found = tables::of_scope(&[table("a"), keyless.clone(), unlogged], &source);
    let ids: Vec<_> =
        found.iter().map(|finding| (finding.id.as_str(), finding.evidence.split(' ').next())).collect();
    assert_eq!(ids, [("replica-identity", Some("public.b")), ("table-unlogged", Some("public.c"))]);
    let unlike = |fault, more| {
        let unlike = UnlikePartition { name: "public.p_1".into(), more, fault };
        TableFacts { partitioned: true, unlike: Some(unlike), ..table("p") }
    };
    for (fault, more, mend) in [
        (Unlike::Identity("FULL".into()), 0, "ALTER TABLE public.p_1 REPLICA IDENTITY FULL;"),
        (Unlike::Unlogged, 2, "ALTER TABLE public.p_1 SET LOGGED;  -- and so 2 more of its partitions"),
        (Unlike::Foreign, 0, "detach public.p_1, or leave the table out of source.tables"),
    ] {
        let found = tables::of_scope(&[unlike(fault, more)], &source);
        let found: Vec<_> = found.iter().map(|it| (it.id, it.mend.as_deref())).collect();
        assert_eq!(found, [(Kind::PartitionDiffers, Some(mend))]);
    }
    let parted = TableFacts { partitioned: true, ..table("p") };
    let found = tables::of_scope(&[parted], &source);
    assert_eq!((found[0].id, found[0].severity), (Kind::PartitionEmptied, Severity::Note));
    let named = SourceSettings { scope: crate::scope::Scope(vec!["public.z".parse().unwrap()]), ..source };
    assert_eq!(tables::of_scope(&[table("a")], &named)[0].id.as_str(), "table-missing");
}

#[test]
fn a_publication_lets_everything_in_scope_through() {
    let source = both().source.unwrap();
    let tables = [table("a"), table("b"), TableFacts { identity_usable: false, ..table("keyless") }];
    let ids = |published: Option<&PublicationFacts>, role: &RolePrivileges| {
        let found = of_publication(published, &tables, role, &source, false);
        found
            .into_iter()
            .map(|finding| (finding.id.as_str(), finding.severity, finding.mend.unwrap()))
            .collect::<Vec<_>>()
    };
    let create = "CREATE PUBLICATION \"landfall\" FOR TABLE \"public\".\"a\", \"public\".\"b\" WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);".to_owned();
    assert_eq!(ids(None, &role()), [("publication-missing", Severity::Error, create.clone())]);
    let owner = RolePrivileges { role: "shop".into(), ..role() };
    assert_eq!(ids(None, &owner), [("publication-missing", Severity::Note, create.clone())]);
    // Dropped under a stream, it is not made by the next start.
    let gone = of_publication(None, &tables, &owner, &source, true);
    assert_eq!((gone[0].severity, gone[0].mend.as_deref()), (Severity::Error, Some(&*create)));
    let anew = format!(
        "BEGIN; DROP PUBLICATION \"landfall\"; {create} COMMIT;  -- where others read it, name another in source.publication"
    );
    let everything = PublicationFacts { all_tables: true, ..published(&["a", "b"]) };
    let mut ours = published(&["a", "b", "stream"]);
    ours.tables[2].schema = "landfall".into();
    for published in [&everything, &ours] {
        let expected = [("publication-own-tables", Severity::Error, anew.clone())];
        assert_eq!(ids(Some(published), &role()), expected);
    }
    assert_eq!(ids(Some(&published(&["a", "b", "other"])), &role()), []);
    let add = "BEGIN; LOCK TABLE \"public\".\"b\" IN SHARE MODE; ALTER PUBLICATION \"landfall\" ADD TABLE \"public\".\"b\"; COMMIT;".to_owned();
    assert_eq!(ids(Some(&published(&["a"])), &role()), [("publication-tables", Severity::Error, add)]);
    let breaks = ids(Some(&published(&["a", "b", "keyless"])), &role());
    assert_eq!(breaks[0].0, "publication-breaks-updates");
    let mut narrow = published(&["a", "b"]);
    narrow.operations_missing = vec!["truncate"];
    narrow.tables[0].row_filter = Some("(id > 3)".into());
    narrow.tables[1].columns_left_out = vec!["v".into()];
    let narrow: Vec<_> = ids(Some(&narrow), &role()).into_iter().map(|(id, ..)| id).collect();
    assert_eq!(narrow, ["publication-operations", "publication-row-filter", "publication-columns"]);
    let generated = PublicationFacts { generated: true, ..published(&["a", "b"]) };
    let generated: Vec<_> = ids(Some(&generated), &role()).into_iter().map(|(id, ..)| id).collect();
    assert_eq!(generated, ["publication-columns"]);
    let parted = [TableFacts { partitioned: true, ..table("a") }];
    let unlike = |fault| {
        let unlike = UnlikePartition { name: "public.a_1".into(), more: 0, fault };
        TableFacts { unlike: Some(unlike), ..parted[0].clone() }
    };
    let whole = PublicationFacts { via_root: true, ..published(&["a"]) };
    for (fault, expected) in
        [(Unlike::Identity("FULL".into()), &["publication-breaks-updates"][..]), (Unlike::Unlogged, &[])]
    {
        let found = of_publication(Some(&whole), &[unlike(fault)], &role(), &source, false);
        assert_eq!(found.iter().map(|finding| finding.id.as_str()).collect::<Vec<_>>(), expected);
    }
    for (via_root, expected) in [(true, &[][..]), (false, &["publication-partitions"])] {
        let published = PublicationFacts { via_root, ..published(&["a"]) };
        let found = of_publication(Some(&published), &parted, &role(), &source, false);
        assert_eq!(found.iter().map(|finding| finding.id.as_str()).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_slot_is_ours_alive_and_can_be_read() {
    let source = both().source.unwrap();
    let ids = |slot: Option<&SlotFacts>, server: &ServerFacts| {
        of_slot(slot, server, &source, false)
            .into_iter()
            .map(|finding| finding.id.as_str())
            .collect::<Vec<_>>()
    };
    let full = ServerFacts { slots_used: 10, senders_used: 10, ..server() };
    assert_eq!(ids(None, &server()), Vec::<&str>::new());
    assert_eq!(ids(None, &full), ["slots-left", "senders-left"]);
    assert_eq!(ids(Some(&slot()), &full), ["senders-left"]);
    assert_eq!(ids(Some(&SlotFacts { active_pid: Some(1), ..slot() }), &full), ["slot-active"]);
    assert_eq!(
        ids(Some(&SlotFacts { database: Some("other".into()), ..slot() }), &server()),
        ["slot-foreign"]
    );
    assert_eq!(ids(Some(&SlotFacts { plugin: None, ..slot() }), &server()), ["slot-foreign"]);
    assert_eq!(ids(Some(&SlotFacts { wal_status: Some("lost".into()), ..slot() }), &server()), ["slot-lost"]);
    let unreserved = SlotFacts { wal_status: Some("unreserved".into()), ..slot() };
    assert_eq!(ids(Some(&unreserved), &server()), ["slot-unreserved"]);
    let lost = SlotFacts { wal_status: Some("lost".into()), ..slot() };
    let mend = |live| of_slot(Some(&lost), &server(), &source, live).remove(0).mend.unwrap();
    assert_eq!(mend(true), Code::SlotLost.remedy());
    assert!(
        mend(false).starts_with("SELECT pg_drop_replication_slot('landfall_r_shop');"),
        "{}",
        mend(false)
    );
    let gone = of_slot(None, &full, &source, true);
    assert_eq!((gone.len(), gone[0].id, gone[0].severity), (1, Kind::SlotMissing, Severity::Error));
    assert_eq!(gone[0].mend.as_deref(), Some(Code::SlotMissing.remedy()));
}

#[test]
fn a_slot_is_one_streams() {
    let source = both().source.unwrap();
    assert_eq!(of_sharing(&anew::Known::default(), &source), None);
    let shared = anew::Known { slot_of: Some("main".into()), ..anew::Known::default() };
    assert_eq!(of_sharing(&shared, &source).map(|it| it.id), Some(Kind::SlotForeign));
}

#[test]
fn a_stream_that_has_begun_stays_on_its_server() {
    let source = both().source.unwrap();
    let known = |is_live| anew::Known { is_live, system: Some("1".into()), ..anew::Known::default() };
    assert_eq!(of_system(&known(true), "1", &source), None);
    assert_eq!(of_system(&known(false), "2", &source), None);
    assert_eq!(of_system(&known(true), "2", &source).map(|it| it.id), Some(Kind::ServerChanged));
}
