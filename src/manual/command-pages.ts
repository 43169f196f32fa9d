/** The pages of the manual for vimgfs and its commands, from the descriptions that parsing and help use. */
import type { Block, CommandHelp, Rows } from '../cli/help/description.js'
import { type Names, named } from '../cli/help/names.js'
import { optionRows, USUAL_EXIT } from '../cli/help/render.js'
import type { Page, Part, Row, Section } from './roff.js'

type Helps = readonly (readonly [name: string, help: CommandHelp])[]

/** Returns the page of each command. */
export function commandPages(helps: Helps, names: Names): Page[] {
  return helps.map(([name, help]) => ({
    name: `vimgfs-${name}`,
    section: 1,
    summary: help.summary,
    sections: sectionsOf(name, help, names),
    seeAlso: ['vimgfs(1)', ...(name === 'mount' ? ['vimgfs-format(5)', 'mount.vimgfs(8)'] : [])],
  }))
}

function sectionsOf(name: string, help: CommandHelp, names: Names): Section[] {
  const { usage, text, options, suboptions = {}, notes = [], exit = USUAL_EXIT, examples } = help
  const fill = (part: string) => named(part, names)
  const inner = (keys: readonly string[]) =>
    keys.flatMap(key => rowsOf(suboptions[key] ?? [], fill))
  const optionList = optionRows(options).map(({ keys, head, text }) => ({
    head: head.trim(),
    text: fill(text),
    rows: inner(keys),
  }))
  return [
    {
      title: 'SYNOPSIS',
      parts: [{ commands: usage.map(line => `vimgfs ${name} ${line.replace(/ +/g, ' ')}`) }],
    },
    { title: 'DESCRIPTION', parts: text.map(block => partOf(block, fill)) },
    ...(optionList.length > 0 ? [{ title: 'OPTIONS', parts: [{ rows: optionList }] }] : []),
    ...(notes.length > 0 ? [{ title: 'NOTES', parts: notes.map(one => partOf(one, fill)) }] : []),
    { title: 'EXIT STATUS', parts: [`${fill(exit)}.`] },
    { title: 'EXAMPLES', parts: [{ lines: examples }] },
  ]
}

const partOf = (block: Block, fill: (text: string) => string): Part =>
  typeof block === 'string' ? fill(block) : { rows: rowsOf(block, fill) }

export const rowsOf = (rows: Rows, fill: (text: string) => string): Row[] =>
  rows.map(([head, text]) => ({ head, text: fill(text) }))

/** Returns the page vimgfs(1), which lists the commands. */
export function overviewPage(helps: Helps): Page {
  return {
    name: 'vimgfs',
    section: 1,
    summary: 'show virtual disk images as raw files, and work with them',
    sections: [
      { title: 'SYNOPSIS', parts: [{ commands: ['vimgfs COMMAND [OPTION…] ARGUMENT…'] }] },
      {
        title: 'DESCRIPTION',
        parts: [
          `vimgfs shows the disk inside a virtual disk image (qcow2, vmdk, qcow, cow, VHD, raw) as one
            flat file, to read and, except VHD, to write, and every snapshot as a read-only file beside
            it. Programs that know only raw disks work on the image, and nothing is converted. Other
            commands make, check, compare and change images.`,
        ],
      },
      {
        title: 'COMMANDS',
        parts: [
          'Each command has a page of its own, such as vimgfs-mount(1).',
          {
            rows: helps.map(([name, { words, summary }]) => ({
              head: `${name} ${words}`,
              text: summary,
            })),
          },
        ],
      },
      {
        title: 'OPTIONS',
        parts: [
          {
            rows: [
              { head: '-h, --help', text: 'list the commands; after a command: its options' },
              { head: '-V, --version', text: 'print the version' },
            ],
          },
        ],
      },
      {
        title: 'ENVIRONMENT',
        parts: [
          {
            rows: [
              {
                head: 'VIMGFS_PASSPHRASE_FILE',
                text: 'the file with the passphrase of encrypted images, if no option names one',
              },
            ],
          },
        ],
      },
      {
        title: 'EXAMPLES',
        parts: [
          {
            lines: [
              'vimgfs mount disk.qcow2 /mnt/x',
              'ls -l /mnt/x',
              'vimgfs umount /mnt/x',
              'vimgfs help snapshot',
            ],
          },
        ],
      },
    ],
    seeAlso: [...helps.map(([name]) => `vimgfs-${name}(1)`), 'vimgfs-format(5)', 'mount.vimgfs(8)'],
  }
}
