/** The scripts of shells. They ask `vimgfs complete`, and leave paths to the shell. */

const BASH = String.raw`# bash completion for vimgfs
_vimgfs() {
  local cur=${'$'}{2//[\\\"\']/} word text lead i
  local -a words=() found=()
  # Bash splits words at = : and @, too. They are one word where no blank stands between them.
  local line=${'$'}{COMP_LINE:0:COMP_POINT}
  local rest=$line
  for ((i = 0; i <= COMP_CWORD; i++)); do
    word=${'$'}{COMP_WORDS[i]}
    ((i == COMP_CWORD)) && word=$rest
    if ((i > 0)) && [[ $rest == [[:blank:]]* || $i == 1 ]]; then
      rest=${'$'}{rest#"${'$'}{rest%%[![:blank:]]*}"}
      ((i == COMP_CWORD)) && word=$rest
      words+=("$word")
    elif ((i > 0)); then
      words[-1]+=$word
    fi
    rest=${'$'}{rest#"$word"}
  done
  words=("${'$'}{words[@]//[\\\"\']/}")
  [[ $cur == [=:@] ]] && cur=
  # Readline replaces only what follows the last of these characters.
  lead=${'$'}{words[-1]%"$cur"}
  COMPREPLY=()
  while IFS=$'\t' read -r word text; do
    case $word in
      ':files '*) compopt -o default ;;
      ':folders '*) compopt -o dirnames ;;
      *) found+=("$word") ;;
    esac
  done < <("$1" complete "${'$'}{words[@]}" 2>/dev/null)
  for word in "${'$'}{found[@]}"; do
    text=${'$'}{word#"$lead"}
    # Within quotes nothing is escaped.
    [[ ${'$'}{COMP_WORDS[COMP_CWORD]} != [\"\']* && $text == *[^][:alnum:]_./,=:@%+~-]* ]] && printf -v text %q "$text"
    COMPREPLY+=("$text")
  done
  [[ ${'$'}{#found[@]} == 1 && ${'$'}{found[0]} == *= ]] && compopt -o nospace
  return 0
}
complete -F _vimgfs vimgfs
`

const ZSH = String.raw`#compdef vimgfs
_vimgfs() {
  local line word paths=
  local -a found texts open opentexts
  local -a before=("${'$'}{(@Q)words[2,CURRENT-1]}")
  ((CURRENT > 2)) || before=()
  for line in "${'$'}{(@f)$(vimgfs complete "${'$'}{before[@]}" "${'$'}{(Q)PREFIX}" 2>/dev/null)}"; do
    word=${'$'}{line%%$'\t'*}
    case $line in
      '') ;;
      ':files '* | ':folders '*) paths=$line ;;
      *$'='$'\t'* | *=) open+=("$word"); opentexts+=("${'$'}{line//$'\t'/  -- }") ;;
      *) found+=("$word"); texts+=("${'$'}{line//$'\t'/  -- }") ;;
    esac
  done
  ((${'$'}{#found})) && compadd -l -d texts -a found
  ((${'$'}{#open})) && compadd -S '' -l -d opentexts -a open
  [[ -z $paths ]] && return
  compset -p ${'$'}{paths##* }
  if [[ $paths == ':files '* ]]; then _files; else _files -/; fi
}
if [[ $funcstack[1] == _vimgfs ]]; then _vimgfs "$@"; else compdef _vimgfs vimgfs; fi
`

const FISH = String.raw`# fish completion for vimgfs
function __vimgfs_complete
    set -l before (commandline -opc)
    set -e before[1]
    set -l current (string unescape -- (commandline -ct); or commandline -ct)
    for line in (vimgfs complete $before "$current" 2>/dev/null)
        set -l skip (string match -r '^:(?:files|folders) (\d+)$' -- $line)[2]
        if test -z "$skip"
            printf '%s\n' $line
            continue
        end
        set -l lead (string sub -l $skip -- "$current")
        set -l path (string sub -s (math $skip + 1) -- "$current")
        if string match -q ':files*' -- $line
            for found in (__fish_complete_path "$path")
                printf '%s\n' $lead$found
            end
        else
            for found in (__fish_complete_directories "$path")
                printf '%s\n' $lead$found
            end
        end
    end
end
complete -c vimgfs -f -a '(__vimgfs_complete)'
`

export const SCRIPTS = { bash: BASH, zsh: ZSH, fish: FISH } as const
