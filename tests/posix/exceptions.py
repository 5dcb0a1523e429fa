"""The one table of checks that do not hold on a target, each with the reason that its user is told.

Such a check runs and has to fail: what begins to hold is taken out of the table. Patterns are those of fnmatch, "[" stands for
itself; a check's name is as pytest writes it, without the target.
"""

NO_SHIFTS = "FUSE has no collapsing and inserting of ranges"
NO_SUID = "mounts are nosuid unless they are made with -o suid: set-id bits are kept, and mean nothing there"
NO_WHITEOUTS = (
    "no whiteouts: overlayfs is to refuse the mount as its upper directory, since opens there are sent to the name again"
)
NO_ATIME = "reading sets no time, as with noatime"
NO_FLUSH = "a range is unlocked by the close of the descriptor that locked it, not by that of one that only read"
POLLED = "FUSE lets every file be waited for; one is always ready"
KEY_LENGTH = "a path is at most as long as a key of the store"


class Chance(str):
    """A reason where it depends on the moment whether a check holds: it need not fail."""


OURS = {
    "test_open::test_a_file_without_a_name_is_linked_by_who_only_reads_it": Chance(
        "it gets a name while it is open for writing, or until its close has been heard of"
    ),
    "test_open::test_what_epoll_waits_for[[]file, EPERM]": POLLED,
    "test_times::test_which_times_a_call_sets[[]chown that changes nothing]": "a chown that changes nothing sets no time",
    "test_times::test_reading_sets_the_time_of_access": NO_ATIME,
    "test_locks::test_closing_any_descriptor_ends_a_processs_locks": NO_FLUSH,
    "test_processes::test_set_user_id_programs": NO_SUID,
    "test_rename::test_a_whiteout_is_left_at_the_name_before[[]*": NO_WHITEOUTS,
    "test_bytes::test_ranges_are_taken_out_and_put_in[[]*": NO_SHIFTS,
}

EXCEPTIONS: dict[str, dict[str, str]] = {
    "mount": OURS,
    "s3": OURS
    | {
        "test_paths::test_names_that_can_be[[]open*, not UTF-8]": "keys of objects are UTF-8",
        "test_paths::test_deep_trees_are_walked_step_by_step": KEY_LENGTH,
    },
}
"""By target: pattern of a check's name, and why."""
