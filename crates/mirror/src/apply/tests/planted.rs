//! Each planted defect is caught by a test that passes without it: our tests can fail.

const CAUGHT: [(&str, &str); 7] = [
    (
        "skip_dir_flush",
        "order::staged_bytes_are_flushed_before_names_and_names_before_rows",
    ),
    ("lose_mtime", "same::names_come_change_and_go"),
    ("reorder_renames", "same::random_changes_on_a_real_tree"),
    (
        "attach_before_content",
        "faults::content_that_can_not_be_had_keeps_the_old_file",
    ),
    ("forget_xattr", "same::extended_attributes"),
    (
        "unlink_before_rename",
        "order::a_reader_never_misses_a_name_nor_sees_a_mix",
    ),
    (
        "break_hardlink",
        "faults::an_inode_with_foreign_links_is_never_changed",
    ),
];

#[test]
fn every_planted_defect_is_caught() {
    let exe = std::env::current_exe().unwrap();
    for (defect, test) in CAUGHT {
        let test = format!("apply::tests::{test}");
        let mut command = std::process::Command::new(&exe);
        command
            .args([&test, "--exact"])
            .env("FS_MIRROR_PLANT", defect);
        let caught = command.output().unwrap();
        let said = String::from_utf8_lossy(&caught.stdout);
        assert!(said.contains("running 1 test"), "{test} is not there");
        assert!(!caught.status.success(), "{defect} is not caught by {test}");
        println!("{defect}: caught by {test}");
    }
}
