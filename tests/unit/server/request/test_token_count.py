"""Token counts, read from answers of vLLM's form."""

from server.request.token_count import TokenCounter


def test_a_whole_answer_says_it() -> None:
    counter = TokenCounter()
    counter.read(
        b'{"choices":[{"message":{"content":"\\"usage\\":{}"}}],"usage":{"prompt_tokens":37,"total_tokens":45,'
        b'"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":16},"completion_tokens_details":null}}'
    )
    assert (counter.input_tokens, counter.output_tokens) == (37, 8)


def test_a_stream_is_counted_by_events_until_it_says_it() -> None:
    counter = TokenCounter()
    counter.events(b'data: {"a":1}\n\ndata: {"a":2}\n\n')
    counter.events(b"data: [DONE]\n\n")
    assert (counter.input_tokens, counter.output_tokens) == (0, 2)
    counter.events(b'event: done\ndata: {"usage":{"input_tokens":3,"output_tokens":9}}\n\n')
    assert (counter.input_tokens, counter.output_tokens) == (3, 9)


def test_counts_that_only_we_asked_for_are_hidden() -> None:
    counter = TokenCounter(hide_usage=True)
    events = b'data: {"choices":[{"text":"x"}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n'
    assert counter.events(events) == b'data: {"choices":[{"text":"x"}]}\n\ndata: [DONE]\n\n'
    assert counter.input_tokens == 1


def test_nonsense_is_ignored() -> None:
    counter = TokenCounter()
    for payload in (
        b'"usage":{nonsense}',
        b'"usage":{"prompt_tokens":"many"}',
        b'"usage":{"prompt_tokens":true}',
        b"\xff",
    ):
        counter.read(payload)
    assert (counter.input_tokens, counter.output_tokens) == (0, 0)
