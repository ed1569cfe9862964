from tasks.diagnosis import Check, State, examine, worst


def check(state: State) -> Check:
    return Check(name="x", state=state, found="something")


def test_the_gravest_state_counts() -> None:
    assert worst([]) == "ok"
    assert worst([check("ok"), check("warn")]) == "warn"
    assert worst([check("fail"), check("warn"), check("ok")]) == "fail"


def test_a_check_that_breaks_is_a_finding() -> None:
    def broken() -> Check:
        raise RuntimeError("no\n  such thing")

    found = examine("disk", broken)
    assert (found.name, found.state) == ("disk", "fail")
    assert found.found == "the check broke: RuntimeError: no such thing"
    assert found.remedy


def test_a_check_that_works_is_passed_on() -> None:
    assert examine("x", lambda: check("warn")) == check("warn")
