/** The persistent bitmaps of the disk that is converted. */
import { ImageError } from '../../errors.js'
import type { BitmapShape, CopiedBitmap } from '../../formats/creating.js'
import { formatOf } from '../../formats/registry.js'
import { storeOf } from '../layer.js'
import type { Source } from '../reading/source.js'

/** Returns the bitmaps of the image itself. `onBroken` is told of those that are left out. Throws ImageError. */
export async function readBitmaps(
  { spec: { layers } }: Source,
  onBroken?: (name: string) => void,
): Promise<readonly CopiedBitmap[]> {
  const [top] = layers
  const { name, creating } = formatOf(top)
  const creator = await creating?.load()
  if (!creator?.copiedBitmaps) {
    const what = `a ${name} image has no bitmaps`
    throw new ImageError('UNSUPPORTED', what, { path: top.path, hint: 'leave out --bitmaps' })
  }
  return creator.copiedBitmaps(storeOf(top), top.spec, onBroken)
}

/** Returns what the size of these bitmaps depends on; undefined if the image can have none. Throws ImageError. */
export async function bitmapShapes({
  spec: { layers },
}: Source): Promise<readonly BitmapShape[] | undefined> {
  const [top] = layers
  const creator = await formatOf(top).creating?.load()
  return creator?.bitmapShapes?.(storeOf(top), top.spec)
}
