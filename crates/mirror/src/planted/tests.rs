//! Each planted defect is caught by a test that passes without it: our tests can fail.
//!
//! Those that only the running program shows are planted in `tests/`, beside the tests that catch them.

const CAUGHT: &[(&str, &str)] = &[
    (
        "skip_dir_flush",
        "apply::tests::order::staged_bytes_are_flushed_before_names_and_names_before_rows",
    ),
    ("lose_mtime", "apply::tests::same::names_come_change_and_go"),
    (
        "reorder_renames",
        "apply::tests::same::random_changes_on_a_real_tree",
    ),
    (
        "attach_before_content",
        "apply::tests::faults::content_that_can_not_be_had_keeps_the_old_file",
    ),
    ("forget_xattr", "apply::tests::same::extended_attributes"),
    (
        "unlink_before_rename",
        "apply::tests::order::a_reader_never_misses_a_name_nor_sees_a_mix",
    ),
    (
        "break_hardlink",
        "apply::tests::faults::an_inode_with_foreign_links_is_never_changed",
    ),
    (
        "acknowledge_before_flush",
        "log::tests::crash::what_was_acknowledged_survives_every_crash",
    ),
    (
        "content_not_flushed",
        "log::tests::crash::what_was_acknowledged_survives_every_crash",
    ),
    (
        "torn_tail_kept",
        "log::tests::damage::zeros_or_junk_behind_the_end_are_cut",
    ),
    (
        "damage_taken_for_a_torn_tail",
        "log::tests::damage::damage_before_the_last_flush_is_never_taken_for_a_torn_tail",
    ),
    (
        "chain_unchecked",
        "log::tests::damage::what_was_changed_together_with_its_checksum_breaks_the_chain",
    ),
];

#[test]
fn every_planted_defect_is_caught() {
    let exe = std::env::current_exe().unwrap();
    for (defect, test) in CAUGHT {
        let run = |defect: Option<&str>| {
            let mut command = std::process::Command::new(&exe);
            command
                .args([test, "--exact"])
                .env_remove("FS_MIRROR_PLANT");
            if let Some(defect) = defect {
                command.env("FS_MIRROR_PLANT", defect);
            }
            let ran = command.output().unwrap();
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            assert!(said.contains("running 1 test"), "{test} is not there");
            (ran.status.success(), said)
        };
        let (passed, said) = run(None);
        assert!(passed, "{test} fails by itself:\n{said}");
        let (passed, _) = run(Some(defect));
        assert!(!passed, "{defect} is not caught by {test}");
        println!("{defect}: caught by {test}");
    }
}
