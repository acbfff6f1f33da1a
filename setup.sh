# Sets up Eventfold in the current shell: `source setup.sh`, in bash or zsh, from any directory.
#
# The first time it makes a virtual environment with locked versions (.venv, or $EVENTFOLD_VENV); afterwards it only
# exports variables. EVENTFOLD_TORCH takes another pip requirement for torch, such as a CUDA build:
#   EVENTFOLD_TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" source setup.sh

_eventfold_setup() {
    local here
    if [ -n "${BASH_VERSION:-}" ]; then
        here="${BASH_SOURCE[0]}"
    elif [ -n "${ZSH_VERSION:-}" ]; then
        here="$(eval 'print -r -- ${(%):-%x}')"
    else
        echo "setup.sh: source it in bash or zsh" >&2
        return 1
    fi
    here="$(cd "$(dirname "${here}")" > /dev/null && pwd -P)" || return 1

    local venv="${EVENTFOLD_VENV:-${here}/.venv}"
    local stamp="${venv}/.eventfold"
    local wanted
    wanted="$(cksum < "${here}/requirements.lock") ${EVENTFOLD_TORCH:-default}"
    if [ ! -f "${stamp}" ] || [ "$(cat "${stamp}")" != "${wanted}" ]; then
        _eventfold_install "${here}" "${venv}" || return 1
        printf '%s\n' "${wanted}" > "${stamp}"
    fi

    export EVENTFOLD_ROOT="${here}"
    export VIRTUAL_ENV="${venv}"
    case ":${PATH}:" in
        *":${venv}/bin:"*) ;;
        *) export PATH="${venv}/bin:${PATH}" ;;
    esac
    case ":${PYTHONPATH:-}:" in
        *":${here}:"*) ;;
        *) export PYTHONPATH="${here}${PYTHONPATH:+:${PYTHONPATH}}" ;;
    esac
    export LAW_HOME="${here}/.law"
    export LAW_CONFIG_FILE="${here}/law.cfg"
    export LAW_INDEX_FILE="${LAW_HOME}/index"
    export LUIGI_CONFIG_PATH="${here}/law.cfg"
    if [ -z "${EVENTFOLD_DATA:-}" ] && [ -d "${here}/../shared/data" ]; then
        export EVENTFOLD_DATA="$(cd "${here}/../shared/data" > /dev/null && pwd -P)"
    fi

    mkdir -p "${LAW_HOME}"
    if [ ! -f "${LAW_INDEX_FILE}" ] || [ -n "$(find "${here}/workflow" -name '*.py' -newer "${LAW_INDEX_FILE}" 2> /dev/null | head -n 1)" ]; then
        "${venv}/bin/law" index --quiet || return 1
    fi
    # Completion is for people: a script has no use for it.
    case "$-" in
        *i*) . "$("${venv}/bin/law" completion)" "" ;;
    esac
    return 0
}

_eventfold_install() {
    local here="$1" venv="$2" python="" candidate
    for candidate in "${EVENTFOLD_PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "${candidate}" ] || continue
        if "${candidate}" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' > /dev/null 2>&1; then
            python="${candidate}"
            break
        fi
    done
    if [ -z "${python}" ]; then
        echo "setup.sh: Python 3.11, 3.12 or 3.13 is missing (Debian, Ubuntu: apt-get install python3 python3-venv; another one: EVENTFOLD_PYTHON=/path/to/python3)" >&2
        return 1
    fi
    # --clear empties the folder: it must be one that was made here.
    if [ -d "${venv}" ] && [ ! -f "${venv}/.eventfold" ] && [ -n "$(ls -A "${venv}")" ]; then
        echo "setup.sh: ${venv} was not made by setup.sh and is left alone: remove it, or name another folder by EVENTFOLD_VENV" >&2
        return 1
    fi
    echo "setup.sh: making the virtual environment ${venv} (once; a few minutes) ..." >&2
    if ! "${python}" -m venv --clear "${venv}"; then
        echo "setup.sh: ${python} can't make virtual environments (Debian, Ubuntu: apt-get install python3-venv)" >&2
        return 1
    fi
    echo "not finished" > "${venv}/.eventfold"
    # torch comes by pip, which honours the site's own package indexes and wheels; the rest by uv where it is there.
    if ! printf '%s\n' "${EVENTFOLD_TORCH:-torch==2.13.0}" \
        | xargs "${venv}/bin/python" -m pip install --quiet --disable-pip-version-check; then
        echo "setup.sh: torch could not be installed; EVENTFOLD_TORCH names another build" >&2
        return 1
    fi
    if command -v uv > /dev/null 2>&1; then
        uv pip install --quiet --python "${venv}/bin/python" -r "${here}/requirements.lock"
    else
        "${venv}/bin/python" -m pip install --quiet --disable-pip-version-check -r "${here}/requirements.lock"
    fi || {
        echo "setup.sh: the locked packages of requirements.lock could not be installed" >&2
        return 1
    }
}

_eventfold_setup
_eventfold_status=$?
unset -f _eventfold_setup _eventfold_install
return "${_eventfold_status}" 2> /dev/null
