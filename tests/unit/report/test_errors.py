from adadecode.report.errors import ERROR_COLUMNS, MAX_SHOWN_LEN, error_lines


def failed(error_row, method, sample_id, error_type, message, **values):
    return error_row(method, sample_id, **values) | {"error_type": error_type, "error_message": message}


def test_samples_rows_and_errors_are_counted_and_the_first_is_named(samples_table, row, error_row):
    samples = samples_table(
        *(row(method, f"s{i}") for i in range(4) for method in ("vanilla", "adadecode")),
        failed(error_row, "vanilla", "17", "PromptTooLongError", "the prompt has 900 tokens", task="gsm8k"),
        failed(error_row, "adadecode", "17", "PromptTooLongError", "the prompt has 900 tokens", task="gsm8k"),
        failed(error_row, "adadecode", "s4", "OutOfMemoryError", "CUDA out of memory"),
        failed(error_row, "adadecode", "s4", "OutOfMemoryError", "CUDA out of memory", repeat=1),
        failed(error_row, "adadecode", "s3", "OutOfMemoryError", "CUDA out of memory", repeat=1),
    )
    expected = [
        "errors: 3 of 6 samples failed: adadecode 4, vanilla 1 rows (3 OutOfMemoryError, 2 PromptTooLongError); "
        "first: gsm8k/17: the prompt has 900 tokens"
    ]
    assert error_lines(samples) == expected
    assert error_lines(samples.select(ERROR_COLUMNS)) == expected


def test_equal_ids_of_two_tasks_are_two_samples(samples_table, row, error_row):
    samples = samples_table(row("vanilla", "0", task="a"), error_row("vanilla", "0", task="b"))
    assert error_lines(samples)[0].startswith("errors: 1 of 2 samples failed: vanilla 1 rows (1 NonFiniteLogitsError)")


def test_nothing_is_said_without_errors(samples_table, row):
    assert error_lines(samples_table(row("vanilla"))) == []
    assert error_lines(samples_table()) == []


def test_a_long_message_is_cut(samples_table, error_row):
    (line,) = error_lines(samples_table(failed(error_row, "vanilla", "s0", "ValueError", "x" * 1000)))
    assert line.endswith("first: demo/s0: " + "x" * MAX_SHOWN_LEN + " ...")


def test_a_row_without_type_or_message_is_counted_too(samples_table, error_row):
    (line,) = error_lines(samples_table(failed(error_row, "vanilla", "s0", None, None)))
    assert line.endswith("vanilla 1 rows (1 unknown); first: demo/s0: no message")
