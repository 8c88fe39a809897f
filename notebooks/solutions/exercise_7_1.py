# Exercise 7.1
def told(form):
    """What a form says, as a set: ("city", "Rome"), ("wants", "food"), ..."""
    said = {(name, form[name]) for name in FIELDS if name != "wants" and form[name]}
    return said | {("wants", want) for want in form["wants"]}


def score(form, wanted):
    found, said = told(form), told(wanted)
    return 2 * len(found & said) / len([*found, *said])  # between precision and recall


whole = [json.loads(record["response"]) for record in heldout]
whole = [form for form in whole if not form["month"]]
invented = [form | {"month": "May"} for form in whole]
earned = {}
for who, given in {
    "empty": forms["empty"][: len(whole)],
    "right": whole,
    "invented": invented,
}.items():
    earned[who] = percent([score(*pair) for pair in zip(given, whole, strict=True)])
    print(f"{who}: {earned[who]}")
lab.exercise(
    "7.1",
    the_empty_form_earns_nothing=earned["empty"].mean < 1,
    the_right_form_earns_all=earned["right"].mean > 99,
    an_invented_month_costs=earned["invented"].mean < 99,
)
