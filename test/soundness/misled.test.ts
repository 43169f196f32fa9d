/**
 * Images in which an entry maps a piece of the disk to the place of a table. A write or a discard there
 * leaves the table whole: nothing else of the disk changes, and no snapshot.
 */
import t from 'tap'
import { ImageError } from '../../src/errors.js'
import { needs, tempFolder } from '../support/run.js'
import { openWritable, readImage } from '../support/writable.js'
import { type Kind, makeKind, RECIPES } from './kinds.js'
import { misled, structuresOf } from './lies.js'
import { act, checkSnapshots } from './scenario.js'
import type { Step } from './steps.js'

const TITLES = ['v3, 64 KiB', 'snapshots', 'bitmaps', 'bitmaps and snapshots, 512']
/** A cluster that each of them has written. */
const GUEST = 1

function steps({ cluster }: Kind): Record<string, Step> {
  const offset = GUEST * cluster
  return {
    'a write within it': { kind: 'write', offset: offset + 100, length: 300, seed: 1 },
    'a write of all of it': { kind: 'write', offset, length: cluster, seed: 2 },
    'a discard': { kind: 'zero', offset, length: cluster },
    'a discard of more': { kind: 'zero', offset: 0, length: cluster * 3 },
    zeros: { kind: 'write zeros', offset, length: cluster },
  }
}

for (const title of TITLES) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const recipe = RECIPES.find(recipe => recipe.title === title)
    if (!recipe) throw new Error(`no kind ${title}`)
    const kind = await makeKind(recipe, tempFolder(t))
    for (const { name, at } of structuresOf(kind.image.bytes())) {
      for (const isCopied of [true, false]) {
        const lie = misled(kind.image, GUEST, at, isCopied)
        if (!lie) throw new Error('there is no table')
        for (const [what, step] of Object.entries(steps(kind))) {
          const store = lie.clone()
          const opened = openWritable({ store })
          const told: string[] = []
          const attempt = (act: () => void) => {
            try {
              act()
            } catch (error) {
              if (!(error instanceof ImageError)) throw error
              told.push(error.code)
            }
          }
          attempt(() => act(opened, step))
          attempt(() => opened.disk.flush())
          // Space that was freed by mistake is handed out now.
          const { cluster } = kind
          for (let i = 24; i < 40; i++) {
            attempt(() =>
              act(opened, { kind: 'write', offset: i * cluster, length: cluster, seed: i }),
            )
          }
          attempt(() => opened.disk.close())
          const label = `${name}, ${isCopied ? '' : 'not '}COPIED, ${what} (${told.join(' ')})`
          t.equal(problemOf(kind, store), '', label)
          // An entry that names the header's cluster maps nothing.
          if (at > 0) t.equal(told[0], 'CORRUPT', `${label} is refused`)
        }
      }
    }
  })
}

/** Describes a change that nobody wrote; empty if there is none. */
function problemOf(kind: Kind, store: Parameters<typeof readImage>[0]['store']): string {
  try {
    const { disk, snapshots } = readImage({ store })
    checkSnapshots(kind, snapshots)
    const { cluster } = kind
    const isSame = (from: number, to: number) =>
      disk
        .subarray(from * cluster, to * cluster)
        .equals(kind.disk.subarray(from * cluster, to * cluster))
    const end = kind.sizeBytes / cluster
    return isSame(GUEST + 2, 24) && isSame(40, end) ? '' : 'other clusters have changed'
  } catch (error) {
    return (error as Error).message
  }
}
