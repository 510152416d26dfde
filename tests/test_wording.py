from da2s_fast.wording import counted


def test_one_and_several():
    assert [counted(number, "epoch") for number in range(3)] == ["0 epochs", "1 epoch", "2 epochs"]
