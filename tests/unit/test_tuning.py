"""Settings are chosen on dev by what they cost, not by luck. Run: pytest tests/unit/test_tuning.py"""

from dlmbench.runs.sweep import Choice, Tried, cheapest_within

STATIC = Tried("static k=1", 0.90, 40, 44.0)


def test_the_cheapest_setting_that_keeps_the_accuracy_is_taken():
    settings = [
        Tried("threshold 0.5", 0.87, 10, 12.0),  # three points below
        Tried("threshold 0.7", 0.88, 14, 16.0),  # two points below, which is allowed
        Tried("threshold 0.9", 0.94, 20, 22.0),  # the highest accuracy on these few items
    ]
    assert cheapest_within(settings, STATIC).label == "threshold 0.7"


def test_of_equal_costs_the_more_accurate_and_forwards_for_want_of_prices():
    assert cheapest_within([Tried("a", 0.89, 9, 12.0), Tried("b", 0.91, 9, 12.0)], STATIC).label == "b"
    assert cheapest_within([Tried("a", 0.89, 9, None), Tried("b", 0.91, 12, 10.0)], STATIC).label == "a"


def test_where_none_keeps_it_the_least_loss_is_taken_and_said():
    settings = [Tried("threshold 0.5", 0.50, 10, 12.0), Tried("threshold 0.9", 0.70, 20, 22.0)]
    chosen = cheapest_within(settings, STATIC)
    assert chosen.label == "threshold 0.9"
    sentence = Choice("nano-gsm", "nano", "threshold", chosen.label, settings, 100, STATIC).sentence
    assert "none keeps static k=1's accuracy within 2 points" in sentence and "out of 2 settings" in sentence


def test_the_sentence_names_rule_and_reference():
    settings = [Tried("threshold 0.7", 0.88, 14, 16.0)]
    sentence = Choice("nano-gsm", "nano", "threshold", "threshold 0.7", settings, 100, STATIC).sentence
    assert "the cheapest that loses at most 2 points against static k=1: 88.0 % against 90.0 % there" in sentence
    alone = Choice("nano-gsm", "nano", "static", "static k=1", [STATIC], 100, STATIC).sentence
    assert alone.endswith("out of 1 setting of static on 100 dev items (90.0 % there).")
