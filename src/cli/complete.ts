/**
 * `vimgfs complete WORD…`: what can stand in place of the last word, for the scripts of `vimgfs completion`. Prints a line
 * for each: the word, a tab and what it means; or, for paths, `:files N` or `:folders N`, with the characters of the word
 * before the path. It never prints an error: the user is writing a command.
 */
import fs from 'node:fs'
import { FS_TYPE, listMounts } from '../io/mountinfo.js'
import { candidates, type Machine, type Offered } from './completion/candidates.js'
import { print } from './output.js'

export async function run(words: string[]): Promise<number> {
  try {
    const offered = await candidates(words, MACHINE)
    print([...new Set(offered.map(lineOf))].map(line => `${line}\n`).join(''))
  } catch {
    // There is nothing to offer.
  }
  return 0
}

function lineOf(one: Offered): string {
  if ('paths' in one) return `:${one.paths} ${one.skip}`
  return one.text === undefined ? one.word : `${one.word}\t${one.text}`
}

const MACHINE: Machine = {
  async tagsOf(image) {
    const { listMounted } = await import('./snapshot.js')
    const { listSnapshots } = await import('../image/snapshots/snapshot-list.js')
    const list = (await listMounted(image, false)) ?? listSnapshots(image, {}, false, () => {})
    // A shell could not tell a tag with such characters from two words or lines.
    return list.snapshots.map(({ name }) => name).filter(tag => !/[\x00-\x1f\x7f]/.test(tag))
  },
  mountpoints: () =>
    listMounts()
      .filter(({ type }) => type === FS_TYPE)
      .map(({ mountpoint }) => mountpoint),
  isFile: name => fs.statSync(name, { throwIfNoEntry: false })?.isFile() ?? false,
}
