use super::*;

fn layout(dir: &tempfile::TempDir) -> Layout {
    Layout { path: dir.path().join("cloud.db"), cache_bytes: 1 << 20, file_bytes_max: 0 }
}

#[test]
fn a_second_process_is_kept_out_until_the_first_ends() {
    let dir = tempfile::tempdir().unwrap();
    let first = Database::open(&layout(&dir)).unwrap();
    assert!(matches!(Database::open(&layout(&dir)), Err(OpenError::InUse { .. })));
    drop(first);
    Database::open(&layout(&dir)).unwrap();
}

#[test]
fn commits_are_synced_and_readers_do_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&layout(&dir)).unwrap();
    let pragma = |name: &str| -> String {
        database
            .connection
            .query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| format!("{value:?}"))
            .unwrap()
    };
    assert_eq!(pragma("synchronous"), "Integer(2)");
    assert_eq!(pragma("journal_mode"), "Text(\"wal\")");
    database.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let reader = Connection::open(&layout(&dir).path).unwrap();
    assert_eq!(reader.query_row("SELECT count(*) FROM samples", [], |row| row.get::<_, i64>(0)), Ok(0));
}

#[test]
fn a_database_locked_by_another_program_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let other = Connection::open(&layout(&dir).path).unwrap();
    other.execute_batch("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; CREATE TABLE t (a)").unwrap();
    let err = Database::open(&layout(&dir)).unwrap_err();
    assert!(matches!(err, OpenError::Locked { .. }), "{err}");
}

#[test]
fn what_is_not_ours_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = layout(&dir).path;
    let refusal = || Database::open(&layout(&dir)).unwrap_err();

    std::fs::write(&path, vec![0x55; 10_000]).unwrap();
    assert!(refusal().to_string().contains("damaged or no database"), "{}", refusal());
    assert_eq!(std::fs::read(&path).unwrap(), vec![0x55; 10_000]);

    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    assert!(matches!(refusal(), OpenError::Foreign { .. }));

    std::fs::remove_file(&path).unwrap();
    drop(Database::open(&layout(&dir)).unwrap());
    Connection::open(&path).unwrap().execute_batch("UPDATE schema_version SET version = 99").unwrap();
    assert!(refusal().to_string().contains("version 99, newer than 2"), "{}", refusal());
}

#[test]
fn a_path_that_cannot_be_says_which() {
    let err =
        Database::open(&Layout { path: "/nowhere/cloud.db".into(), cache_bytes: 1 << 20, file_bytes_max: 0 }).unwrap_err();
    assert!(err.to_string().contains("/nowhere/cloud.db.lock"), "{err}");
}

#[test]
fn the_documented_tables_and_views_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(&layout(&dir)).unwrap();
    let mut select = database.connection.prepare("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')").unwrap();
    let names: Vec<String> = select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let page = include_str!("../SCHEMA.md");
    for name in &names {
        assert!(page.contains(&format!("`{name}`")), "SCHEMA.md does not say what `{name}` is");
        database.connection.prepare(&format!("SELECT * FROM {name}")).unwrap();
    }
    assert!(names.len() > 15, "{names:?}");
}
