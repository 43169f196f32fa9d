/**
 * Changes the tables of an image whose disk is written, while nothing asks to change the disk. It does what closing the disk,
 * changing the image at rest and opening it again would do, but reads of the old state can go on until the new one is valid.
 */
import { inWords } from '../../errors.js'
import type { SnapshotWriting } from '../../formats/snapshot-writer.js'
import type { WritableDisk } from '../../formats/writable.js'

/** The steps that a change of tables reports; see SnapshotWriting. */
export type ChangeSteps = Required<Pick<SnapshotWriting, 'beforeSwitch' | 'afterSwitch'>>

export interface QuietChange<T> {
  /** Makes the change, as of an image at rest, and calls the steps. */
  act(steps: ChangeSteps): T
  /** Called before the change becomes valid. Returns when nothing reads the old state. If it throws, nothing changes. */
  alone(): void
  /** Begins anew with the image as its file is now. @param hasChanged whether it has the new state */
  show(hasChanged: boolean): void
  /** Told what closing the disk could not keep. */
  warn(warning: string): void
}

/**
 * Makes the change. Throws what `act`, `alone` and `show` throw, and SystemError. Whatever happens, `show` was called, or the disk
 * is not written any more.
 */
export function changeQuietly<T>(
  disk: WritableDisk,
  { act, alone, show, warn }: QuietChange<T>,
): T {
  // Where this fails, the disk goes on.
  disk.flush()
  let mayHaveSwitched = false
  let isShown = false
  const showOrEnd = (hasChanged: boolean) => {
    try {
      show(hasChanged)
      isShown = true
    } catch (error) {
      disk.end(`it could not be read after a change of its snapshots: ${inWords(error)}`)
      throw error
    }
  }
  try {
    for (const warning of disk.close()) warn(warning)
    return act({
      beforeSwitch: () => {
        alone()
        mayHaveSwitched = true
      },
      afterSwitch: () => showOrEnd(true),
    })
  } catch (error) {
    // Whether the file has the old state or the new one after a power cut is unknown.
    if (mayHaveSwitched && !isShown) disk.end(`a change of its snapshots failed: ${inWords(error)}`)
    throw error
  } finally {
    // A disk that has failed stays as it is: it is only read.
    if (!isShown && disk.failure === '') showOrEnd(false)
  }
}
