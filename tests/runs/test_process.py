from __future__ import annotations

from dataclasses import replace

from aegis.runs.process import is_alive, this_process


def test_a_reused_number_or_another_boot_is_another_process() -> None:
    me = this_process()
    assert is_alive(me)
    assert not is_alive(replace(me, started=me.started - 60))
    assert not is_alive(replace(me, boot="another"))
    assert not is_alive(replace(me, pid=2**22 + 5))
