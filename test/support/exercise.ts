/** Does with an image all that a mount does, for hostile images. */
import { readLuks1 } from '../../src/crypto/luks1.js'
import { ImageError, isExpected, oneLine } from '../../src/errors.js'
import { type CatalogEntry, catalogOf } from '../../src/image/catalog.js'
import { type Chain, closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import type { View } from '../../src/formats/driver.js'
import { unlockChain } from '../../src/image/opening/encryption.js'
import { countAllocated, nextData, nextHole } from '../../src/image/reading/holes.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { storeOf } from '../../src/image/layer.js'
import { readAt } from './image.js'

export interface HostileOptions extends OpenOptions {
  /** The passphrase of all encrypted layers. */
  readonly passphrase?: string
}

export interface Outcome {
  /** The error of opening, if it refused. */
  readonly refusal?: { readonly code: string; readonly line: string }
  /** How often a read, a seek or a count met damage. */
  readonly damages: number
  /** Errors that must not occur: unexpected ones, and messages of more than one line. */
  readonly unexpected: readonly string[]
  readonly names: readonly string[]
}

/** The most files that are read, at their beginnings, middles and ends. */
const MAX_ENTRIES = 8
/** The size of the kernel's reads. */
const READ_BYTES = 128 * 1024
const COUNT_MS = 20

export async function exercise(path: string, options: HostileOptions = {}): Promise<Outcome> {
  const unexpected: string[] = []
  let damages = 0
  const met = (what: string, error: unknown): ImageError | undefined => {
    damages++
    const problem = problemOf(error)
    if (problem) unexpected.push(`${what}: ${problem}`)
    return error instanceof ImageError ? error : undefined
  }
  const guard = (what: string, act: () => void): void => {
    try {
      act()
    } catch (error) {
      met(what, error)
    }
  }
  let image: Opened
  try {
    image = await open(path, options)
  } catch (error) {
    const refusal = met('open', error)
    const line = refusal ? oneLine(refusal) : ''
    return { refusal: { code: refusal?.code ?? '', line }, damages: 0, unexpected, names: [] }
  }
  const { entries, views } = image
  for (const entry of entries.slice(0, MAX_ENTRIES)) {
    let view: View | undefined
    guard('view', () => {
      view = views.viewOf(entry)
    })
    if (view) use(view, guard)
  }
  image.close()
  return { damages, unexpected, names: entries.map(entry => entry.name) }
}

interface Opened {
  readonly entries: readonly CatalogEntry[]
  readonly views: ViewSet
  close(): void
}

const CACHES = { metadataBytes: 4 * 2 ** 20, clusterBytes: 8 * 2 ** 20 }

async function open(path: string, { passphrase, ...options }: HostileOptions): Promise<Opened> {
  const chain = openChain(path, options)
  try {
    const unlocked = await unlockChain(chain, async file => {
      const refuse = (what: string): never => {
        throw new ImageError('REFUSED', what, { path: file, hint: 'name its passphrase' })
      }
      if (passphrase === undefined) return refuse('it is encrypted')
      if (iterationsOf(chain, file) > MAX_ITERATIONS) refuse('finding its key takes long')
      return [Buffer.from(passphrase)]
    })
    const { entries } = catalogOf(unlocked)
    const views = new ViewSet(unlocked.layers, CACHES)
    return { entries, views, close: () => closeChain(chain) }
  } catch (error) {
    closeChain(chain)
    throw error
  }
}

/** Some milliseconds of work: the allowed number of iterations must not decide how long an image takes. */
const MAX_ITERATIONS = 20_000

/** Returns the iterations in the sound LUKS header of the layer at `path`. */
function iterationsOf(chain: Chain, path: string): number {
  const layer = chain.layers.find(layer => layer.path === path)
  const area = layer?.encryption?.headerArea
  if (!layer || !area) return 0
  const { slots, masterKeyIterations } = readLuks1(storeOf(layer), area)
  const active = slots.filter(({ isActive }) => isActive)
  return active.reduce((sum, each) => sum + each.iterations + masterKeyIterations, 0)
}

function use(view: View, guard: (what: string, act: () => void) => void): void {
  const { sizeBytes } = view.driver
  const places = [0, 1, 2, 3].map(i => i * READ_BYTES)
  places.push(Math.floor(sizeBytes / 2), Math.max(0, sizeBytes - 4096))
  for (const offset of places.filter(place => place < sizeBytes)) {
    guard(`read at ${offset}`, () => void readAt(view, offset, READ_BYTES))
    guard(`data from ${offset}`, () => void nextData(view, offset))
    guard(`hole from ${offset}`, () => void nextHole(view, offset))
  }
  guard('count', () => void countAllocated(view, 2 ** 20, COUNT_MS))
}

/** Returns why a user must not see this error; undefined if it is a proper one. */
export function problemOf(error: unknown): string | undefined {
  if (!isExpected(error)) return error instanceof Error ? `${error.stack}` : String(error)
  const line = oneLine(error)
  return /[\x00-\x1f\x7f-\x9f\u2028\u2029]/.test(line)
    ? `not one line: ${JSON.stringify(line)}`
    : undefined
}
