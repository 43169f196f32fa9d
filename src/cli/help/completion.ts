/** The options and the help of `vimgfs completion`. */
import type { CommandHelp, Options } from './description.js'

export const SHELLS = ['bash', 'zsh', 'fish'] as const

export const OPTIONS = {} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['bash|zsh|fish'],
  words: 'SHELL',
  actions: SHELLS,
  summary: 'print the script that completes command lines',
  text: [
    `Prints a script for the shell that is named. With it, the Tab key completes commands, options and
      their values, images, snapshots and mount points. The packages for Debian bring these scripts
      along.`,
  ],
  options: OPTIONS,
  examples: [
    'source <(vimgfs completion bash)',
    'vimgfs completion bash > ~/.local/share/bash-completion/completions/vimgfs',
    'vimgfs completion zsh > /usr/local/share/zsh/site-functions/_vimgfs',
    'vimgfs completion fish > ~/.config/fish/completions/vimgfs.fish',
  ],
}
