/** The options and the help of `vimgfs cache`. */
import type { CommandHelp, Options } from './description.js'

export const ACTIONS = ['list', 'clear'] as const

export const OPTIONS = {
  'cache-dir': {
    type: 'string',
    value: 'DIR',
    help: 'the folder of the cache ($XDG_CACHE_HOME/vimgfs, or ~/.cache/vimgfs)',
  },
  output: {
    type: 'string',
    choices: ['human', 'json'],
    actions: ['list'],
    help: 'list: for people (the default) or for programs',
  },
} as const satisfies Options

export const HELP: CommandHelp = {
  usage: ['list  [OPTION…] [ADDRESS]', 'clear [OPTION…] [ADDRESS]'],
  words: 'ACTION ADDRESS',
  actions: ACTIONS,
  summary: 'show or remove what is kept of images on servers',
  text: [
    `The cache has blocks of images that were read from http:// and https://. list shows each image,
      and the space that its blocks take. clear removes what no program has open. With ADDRESS
      both mean that image alone.`,
  ],
  options: OPTIONS,
  examples: ['vimgfs cache list', 'vimgfs cache clear https://images.example/debian.qcow2'],
}
