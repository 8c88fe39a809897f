# Exercise 16.1
wanted = lab_6["content_sha256"]  # as the registry says it
last_month, old_signature = lab.cleared("altered"), keys / "last-month.sig"
shutil.copytree(signed, last_month)
swap_it_and_write_the_manifest_anew(last_month)
sign(last_month, old_signature)


def content_of(folder):
    return json.loads((folder / "manifest.json").read_text())["content_sha256"]


def is_what_i_wanted(folder, its_signature):
    # a signature says whose it is; the content says which
    return verify(folder, its_signature, ALL_FILES)[0] and content_of(folder) == wanted


takes_the_true_one = is_what_i_wanted(signed, signature)
takes_last_month = is_what_i_wanted(last_month, old_signature)
print(f"takes the true one: {takes_the_true_one}; takes last month's: {takes_last_month}")
lab.exercise(
    "16.1", takes_the_true_one=takes_the_true_one, refuses_last_months=not takes_last_month
)
