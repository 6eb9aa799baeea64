"""What a call of Stream says about itself."""

from server.calls.stream_types import VideoCall, VideoUser


def test_the_creator_is_the_host_unless_data_that_count_name_one() -> None:
    call = VideoCall(custom={"payer": "host", "host": "eve"}, created_by=VideoUser("ann"))
    assert call.said(trusts_custom=True) == {"payer": "host", "host": "eve"}
    assert call.said(trusts_custom=False) == {"host": "ann"}
    for nameless in (None, VideoUser(), VideoUser("no\nname"), VideoUser("x" * 500)):
        assert VideoCall(created_by=nameless).said(trusts_custom=False) == {}
