# Above stand the values of this event. Azure ML runs this as root, once, when it makes a compute
# instance; what it prints lies on the notebooks' file share, in Logs/NAME/.
set -euo pipefail
user=${CI_LOCAL_UBUNTU_USER:-$(id -un)}

labs() {
    set -euo pipefail
    mkdir -p "$HOME/localfiles" # the local disk: locks and small files are slow on the share
    cd "$HOME/localfiles"
    if [[ ! -d on-device-lab ]]; then
        rm -rf on-device-lab.new
        git clone --quiet "$repository" on-device-lab.new
        git -C on-device-lab.new checkout --quiet "$ref"
        mv on-device-lab.new on-device-lab
    fi
    cd on-device-lab
    if ! ./lab help >/dev/null 2>&1; then # the image has no Python that fits
        /anaconda/bin/conda create --yes --quiet --prefix "$HOME/localfiles/python" python=3.11
        echo 'export PATH="$HOME/localfiles/python/bin:$PATH"' >>"$HOME/.bashrc"
        export PATH="$HOME/localfiles/python/bin:$PATH"
    fi
    ./lab setup
    .venv/bin/python -m ipykernel install --user --name on-device-lab
    ./lab doctor
    [[ -n $bundle ]] || return 0
    printf '%s\n' '#!/usr/bin/env bash' 'cd ~/localfiles/on-device-lab' \
        "exec ./lab catch-up \"\$1\" --from ${bundle@Q} --fingerprint $fingerprint" \
        >"$HOME/localfiles/catch-up"
    chmod +x "$HOME/localfiles/catch-up"
    [[ -z $lab ]] || "$HOME/localfiles/catch-up" "$lab"
}

if [[ $(id -un) == "$user" ]]; then
    labs
else
    { declare -p repository ref bundle fingerprint lab; declare -f labs; echo labs; } |
        sudo --login --user "$user" bash -s
fi
