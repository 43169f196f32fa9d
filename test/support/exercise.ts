/** All that a mount does with an image, for images that nobody can trust. */
import { ImageError, isExpected, oneLine } from '../../src/errors.js'
import type { OpenOptions } from '../../src/formats/chain.js'
import type { View } from '../../src/formats/driver.js'
import { countAllocated, nextData, nextHole } from '../../src/formats/holes.js'
import { openImage, readAt } from './image.js'

export interface Outcome {
  /** What opening said, when it refused. */
  readonly refusal?: { readonly code: string; readonly line: string }
  /** How often a read, a seek or a count met damage. */
  readonly damages: number
  /** What must not be: an error that is none of ours, or one that is more than a line. */
  readonly unexpected: readonly string[]
  readonly names: readonly string[]
}

/** Files read at most: their beginnings, middles and ends. */
const MAX_ENTRIES = 8
/** As a kernel reads. */
const READ_BYTES = 128 * 1024
const COUNT_MS = 20

export function exercise(path: string, options: OpenOptions = {}): Outcome {
  const unexpected: string[] = []
  let damages = 0
  const guard = (what: string, act: () => void): ImageError | undefined => {
    try {
      act()
    } catch (error) {
      damages++
      const problem = problemOf(error)
      if (problem) unexpected.push(`${what}: ${problem}`)
      if (error instanceof ImageError) return error
    }
    return undefined
  }
  let image: ReturnType<typeof openImage> | undefined
  const refusal = guard('open', () => {
    image = openImage(path, options)
  })
  if (!image) {
    const line = refusal ? oneLine(refusal) : ''
    return { refusal: { code: refusal?.code ?? '', line }, damages: 0, unexpected, names: [] }
  }
  const { entries, images } = image
  for (const entry of entries.slice(0, MAX_ENTRIES)) {
    let view: View | undefined
    guard('view', () => {
      view = images.viewOf(entry)
    })
    if (view) use(view, guard)
  }
  image.close()
  return { damages, unexpected, names: entries.map(entry => entry.name) }
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

/** Why an error is not one that a user may see; undefined when it is. */
export function problemOf(error: unknown): string | undefined {
  if (!isExpected(error)) return error instanceof Error ? `${error.stack}` : String(error)
  const line = oneLine(error)
  return /[\x00-\x1f\x7f-\x9f\u2028\u2029]/.test(line)
    ? `not one line: ${JSON.stringify(line)}`
    : undefined
}
